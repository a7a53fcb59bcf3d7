"""Squared miss on the continuation's tokens, the bounded cousin of the log-probability.

The Brier score (Monthly Weather Review, 1950) of one event a token, "the next token is x_k". The
events scored are only those that came true, so unlike the score over the whole vocabulary (which
takes the sum of all squared probabilities) it is no proper score: log-probability is the only one
that looks at the true token alone.

Known failure: tokens of probability near 0 weigh alike, so hopeless positions teach nothing.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("brier")
def brier(inputs: RewardInputs) -> Tensor:
    """r = −mean_k (1 − p(x_k | context, thought))², in [−1, 0], [P, G]. Not discounted."""
    miss_PGH = 1 - inputs.logp_think_PGH.exp()
    return -inputs.mean(miss_PGH.square())
