"""The policy grades its own answer, without seeing how the page goes on.

A measure of confidence, not of truth. Known failure: gaming; the answer that the judge likes best
need not be about the page at all. Worth having as a shadow, and as the control of `judge_gold`.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("self_judge", answers=True, judge="self")
def self_judge(inputs: RewardInputs) -> Tensor:
    """r = p(yes) / (p(yes) + p(no)) of the current weights on whether the answer is right, in
    [0, 1], [P, G]; 0 for an empty answer. See `rntp.objective.judge_model`.
    """
    return inputs.verdicts["self"]
