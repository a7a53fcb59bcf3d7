"""Positions in proportion to how far the rewards of their thoughts lay apart lately.

A group whose thoughts all earn the same teaches nothing. Sampling without replacement, and not the
best few, keeps looking elsewhere.
"""

from torch import Tensor

from rntp.placement import register
from rntp.types import PlacementInputs

# Least weight of a position, as a share of the context's largest: a bucket that taught nothing is
# visited again some day, because the policy changes.
FLOOR = 0.02


@register("learnability")
def learnability(inputs: PlacementInputs) -> Tensor:
    """Score = log(learnability + floor) + Gumbel noise, [L]: the K best are a weighted sample
    without replacement (Gumbel top-k, 1903.06059). Without any learnability it is uniform.
    """
    spread = inputs.learnability_L.double()
    weight = spread + FLOOR * spread.max().clamp_min(1e-30)
    return weight.log() - (-inputs.noise_L.log()).log()
