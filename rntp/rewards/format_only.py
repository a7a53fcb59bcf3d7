"""A control: only the form of the thought counts, not what it says."""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("format_only")
def format_only(inputs: RewardInputs) -> Tensor:
    """r = 1 if the model closed the thought itself, else 0, [P, G]."""
    return inputs.closed_PG.float()
