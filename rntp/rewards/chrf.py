"""Character n-grams that answer and continuation share (chrF, Popović, WMT 2015; sacrebleu).

Best with `thought.answer_tokens` equal to `reward.horizon`. Known failure: common endings and
spellings score, so no answer of a language is quite worthless.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.rewards.by_answer import by_answer
from rntp.types import RewardInputs


@register("chrf", answers=True, package="sacrebleu")
def chrf(inputs: RewardInputs) -> Tensor:
    """r = chrF2 of the answer against the H tokens of the continuation, in [0, 1], [P, G]."""
    from sacrebleu import sentence_chrf

    def similarity(ids: Tensor, truth: Tensor) -> float:
        return sentence_chrf(inputs.decode(ids), [inputs.decode(truth)]).score / 100

    return by_answer(inputs, inputs.continuations, similarity)
