"""Uniformly random positions (RLP, 2510.01265: one a document)."""

from torch import Tensor

from rntp.placement import register
from rntp.types import PlacementInputs


@register("random")
def random(inputs: PlacementInputs) -> Tensor:
    """Score = the context's own noise, [L]."""
    return inputs.noise_L
