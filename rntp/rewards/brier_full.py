"""The Brier score of every prediction of the continuation, over the whole vocabulary.

The multi-class score (Monthly Weather Review, 1950), a proper one: nothing but the true
distribution earns more on average. `brier` looks at the true token alone; this one also sees where
the rest of the probability lies, and pays for doubt that is spread rather than for a wrong guess.

Known failure: bounded, so hopeless tokens weigh little more than hard ones; and a second pass of
the head over the continuation's rows.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("brier_full", collision=True)
def brier_full(inputs: RewardInputs) -> Tensor:
    """r = −mean_k Σ_v (p_v − 1[v = x_k])², p given context and thought, in [−2, 0], [P, G].

    Not discounted.
    """
    p_PGH = inputs.logp_think_PGH.exp()
    return -inputs.mean(inputs.collision_PGH - 2 * p_PGH + 1)
