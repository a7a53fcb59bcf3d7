"""A control: noise. What is learnt from it was not taught by the reward."""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("random")
def random(inputs: RewardInputs) -> Tensor:
    """r = a uniform draw of the thought's own, in [0, 1), [P, G]."""
    return inputs.noise_PG.float()
