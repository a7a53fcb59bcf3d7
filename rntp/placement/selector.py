"""Positions where a few thoughts win and most do not yet: a learned selector (2512.03442)."""

from torch import Tensor

from rntp.placement import register, weighted_sample
from rntp.types import PlacementInputs

# Least weight, as a share of the context's largest: what earned nothing is tried again some day.
FLOOR = 0.02


@register("selector")
def selector(inputs: PlacementInputs) -> Tensor:
    """A weighted sample, weight = max(0, predicted yield) + floor, [L]; see `rntp.selector`."""
    predicted = inputs.learned_L.double().clamp_min(0)
    weight = predicted + FLOOR * predicted.max().clamp_min(1e-30)
    return weighted_sample(weight, inputs.noise_L)
