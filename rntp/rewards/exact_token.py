"""The next token alone, right or wrong (RPT's first-token ablation, 2506.08007, teacher-forced)."""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("exact_token")
def exact_token(inputs: RewardInputs) -> Tensor:
    """r = 1 if the first continuation token is the arg-max with the thought, else 0, [P, G]."""
    return inputs.match_PGH[:, :, 0].float()
