"""The policy grades its own answer with the true continuation in view (after RLPT, 2509.19249).

There another model says 0 or 1 whether the answer is in meaning a prefix of what follows; here the
policy itself gives a probability. Known failure: a small model cannot judge, and one that is being
trained may learn to please itself.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("judge_gold", answers=True, judge="gold")
def judge_gold(inputs: RewardInputs) -> Tensor:
    """r = p(yes) / (p(yes) + p(no)) of the current weights on whether the answer says what the
    continuation says, in [0, 1], [P, G]; 0 for an empty answer. See `rntp.objective.judge_model`.
    """
    return inputs.verdicts["gold"]
