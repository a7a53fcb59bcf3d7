"""How far greedy prediction goes right (RPT's prefix match, 2506.08007, teacher-forced)."""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("exact_prefix")
def exact_prefix(inputs: RewardInputs) -> Tensor:
    """r = number of continuation tokens matched before the first miss, 0 … H tokens, [P, G]."""
    return inputs.scored(inputs.match_PGH.float().cumprod(dim=-1)).sum(dim=-1)
