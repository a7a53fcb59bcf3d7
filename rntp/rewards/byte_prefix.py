"""The answer is a prefix of the true text that ends where one of its tokens ends (RPT, 2506.08007).

An answer is what the policy writes until its end token or `thought.answer_tokens`, so few tokens
are the natural choice: all of them must be right. Known failure: hits of several tokens are rare;
a shorter answer is a safer one.
"""

from collections.abc import Callable

from torch import Tensor

from rntp.rewards import register
from rntp.rewards.by_answer import by_answer
from rntp.types import RewardInputs


@register("byte_prefix", answers=True)
def byte_prefix(inputs: RewardInputs) -> Tensor:
    """r = 1 if the bytes of the answer are those of x_p … x_{p+k−1} for some k ≥ 1, else 0, [P, G].

    White space at either end of both counts for nothing: tokens carry their space in front, and a
    trailing one would miss the boundary. An empty answer is wrong. The true text goes on to the end
    of the context, beyond the horizon.
    """

    def score(ids: Tensor, truth: Tensor) -> float:
        return float(_is_prefix(inputs.decode(ids).strip(), truth, inputs.decode))

    return by_answer(inputs, inputs.true_ids, score)


def _is_prefix(answer: str, true_ids: Tensor, decode: Callable[[Tensor], str]) -> bool:
    """Texts are equal where their bytes are, but for pieces of a character, which decode to U+FFFD
    and are no boundary that a text could end at.
    """
    if not answer or answer.endswith("\N{REPLACEMENT CHARACTER}"):
        return False
    for k in range(1, len(true_ids) + 1):
        truth = decode(true_ids[:k]).strip()
        if truth == answer:
            return True
        if len(truth) > len(answer):
            return False
    return False
