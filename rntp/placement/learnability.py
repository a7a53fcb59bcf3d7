"""Positions in proportion to the variance that the rewards of their thoughts had lately.

A group whose thoughts all earn the same teaches nothing; the squared length of a group's policy
gradient goes with the variance of its rewards. Sampling without replacement, and not the
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
    """Score = log(learnability² + floor) + Gumbel noise, [L]: the K best are a weighted sample
    without replacement (Gumbel top-k, 1903.06059). Without any learnability it is uniform.
    """
    variance = inputs.learnability_L.double().square()
    weight = variance + FLOOR * variance.max().clamp_min(1e-30)
    return weight.log() - (-inputs.noise_L.log()).log()
