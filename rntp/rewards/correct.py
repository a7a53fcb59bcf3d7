"""Whether a task's own rule finds the answer right: RLVR (2411.15124; DeepSeek-R1, 2501.12948).

What a rule grades is `data.tasks.rule`. Known failure: sparse; where a policy never or always
solves a task, the whole group earns the same. A page has no such answer, and its thoughts earn 0:
in a mixture of pages and tasks another scheme has to drive on pages.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("correct", answers=True, tasks=True)
def correct(inputs: RewardInputs) -> Tensor:
    """r = 1 if the answer is right, else 0, [P, G]; what is right in part is not."""
    return (inputs.right_PG >= 1).float()
