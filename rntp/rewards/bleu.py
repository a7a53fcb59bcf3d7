"""Word n-grams that answer and continuation share (BLEU, Papineni et al., ACL 2002; sacrebleu).

Best with `thought.answer_tokens` equal to `reward.horizon`: a shorter answer is punished for being
short. Known failure: words in place of meaning; most short answers share none.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.rewards.by_answer import by_answer
from rntp.types import RewardInputs


@register("bleu", answers=True, package="sacrebleu")
def bleu(inputs: RewardInputs) -> Tensor:
    """r = BLEU of the answer against the H tokens of the continuation, in [0, 1], [P, G].

    Of sentences: exponential smoothing, and only the orders that the answer is long enough for.
    """
    from sacrebleu import sentence_bleu

    def similarity(ids: Tensor, truth: Tensor) -> float:
        return sentence_bleu(inputs.decode(ids), [inputs.decode(truth)]).score / 100

    return by_answer(inputs, inputs.continuations, similarity)
