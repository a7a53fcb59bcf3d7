"""From easy to hard positions as the run goes on (RMT, 2509.24375).

Tiers by the entropy of the no-think prediction, in nats, with the bounds that RPT (2506.08007) and
RMT report by. The paper's schedule is piecewise linear with knees at 30 % and 70 % of the run, here
of `ramp_steps` of `placement.policy`; the shares at its ends are not known to us, these are ours.
"""

import torch
from torch import Tensor

from rntp.placement import register, weighted_sample
from rntp.types import PlacementInputs

BOUNDS = (0.5, 1.0, 1.5)  # nats: below the first is no tier, and only fills up
KNEES = (0.3, 0.7)  # of the ramp
FIRST, LAST = (0.6, 0.3, 0.1), (0.1, 0.3, 0.6)  # shares of easy, medium, hard


@register("tiers")
def tiers(inputs: PlacementInputs) -> Tensor:
    """A weighted sample: each tier weighs its share, spread evenly over its positions, [L]."""
    tier = torch.bucketize(inputs.entropy_L, torch.tensor(BOUNDS, dtype=inputs.entropy_L.dtype))
    sizes = tier.bincount(minlength=len(BOUNDS) + 1).clamp_min(1)
    share = torch.tensor([1e-9, *shares(inputs.progress)], dtype=torch.float64)
    return weighted_sample((share / sizes)[tier], inputs.noise_L)


def shares(progress: float) -> tuple[float, ...]:
    """Shares of easy, medium and hard positions at a point of the ramp; they add up to 1."""
    start, end = KNEES
    ramp = min(max((progress - start) / (end - start), 0.0), 1.0)
    return tuple((1 - ramp) * a + ramp * b for a, b in zip(FIRST, LAST, strict=True))
