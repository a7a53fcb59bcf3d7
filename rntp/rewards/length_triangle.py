"""How well a thought keeps to a length that shrinks over training (RMT, 2509.24375).

For a weighted sum: RMT adds a little of it to an exact match. `length_budget` is the length
at the start, `length_half_life` how fast it shrinks. Known failure: alone it teaches nothing
but a length.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("length_triangle")
def length_triangle(inputs: RewardInputs) -> Tensor:
    """r = max(0, 1 − |n − B| / B), in [0, 1], [P, G]: 1 at n = B thought tokens, 0 at none and from
    2 B on; B is the budget at the time when the thought was sampled.
    """
    budget_P1 = inputs.length_budget_P[:, None]
    return (1 - (inputs.num_tokens_PG - budget_P1).abs() / budget_P1).clamp_min(0)
