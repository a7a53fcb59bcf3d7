"""The positions that the model is least sure about (RPT, 2506.08007, with the policy as filter)."""

from torch import Tensor

from rntp.placement import register
from rntp.types import PlacementInputs


@register("entropy")
def entropy(inputs: PlacementInputs) -> Tensor:
    """Score = entropy of the no-think next-token distribution, nats, [L]."""
    return inputs.entropy_L
