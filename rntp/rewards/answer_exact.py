"""The next token as the policy writes it, right or wrong (RPT's first-token ablation, 2506.08007).

Unlike `exact_token`, which asks for the arg-max, this one is sampled. Known failure: sparse; where
the true token is unlikely or certain the whole group earns the same.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.rewards.by_answer import by_answer
from rntp.types import RewardInputs


@register("answer_exact", answers=True)
def answer_exact(inputs: RewardInputs) -> Tensor:
    """r = 1 if the first token of the answer is the first of the continuation, else 0, [P, G].

    An answer that ended at once is wrong.
    """

    def score(ids: Tensor, truth: Tensor) -> float:
        return float(len(ids) > 0 and ids[0] == truth[0])

    return by_answer(inputs, list(inputs.continuation_ids_PH), score)
