"""Positions in proportion to the variance that the rewards of their thoughts had lately.

A group whose thoughts all earn the same teaches nothing; the squared length of a group's policy
gradient goes with the variance of its rewards. Sampling without replacement, and not the
best few, keeps looking elsewhere.
"""

from torch import Tensor

from rntp.placement import register, weighted_sample
from rntp.types import PlacementInputs

# Least weight of a position, as a share of the context's largest: a bucket that taught nothing is
# visited again some day, because the policy changes.
FLOOR = 0.02


@register("learnability")
def learnability(inputs: PlacementInputs) -> Tensor:
    """A weighted sample, weight = (running standard deviation)² + floor, [L].

    Without any learnability it is uniform.
    """
    variance = inputs.learned_L.double().square()
    weight = variance + FLOOR * variance.max().clamp_min(1e-30)
    return weighted_sample(weight, inputs.noise_L)
