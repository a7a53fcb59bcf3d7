"""Models behind an endpoint grade the answer, with the truth in view (2509.19249) or without.

Known failures: punctuation and openers may earn a yes (2507.08794), a weak judge pays for style
(2605.12474), and a policy finds out. So attacks are tried on the judges before a run and in it
(`reward.judges.audit`), and the likelihood reward belongs beside it as a shadow.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("judge", answers=True, outside=True)
def judge(inputs: RewardInputs) -> Tensor:
    """r = P(the judges find the answer right), in [0, 1], [P, G]; 0 for an empty answer, and NaN
    where a verdict is missing: that thought leaves its group. See `rntp.judges`.
    """
    return inputs.verdicts["outside"]
