"""The positions whose true token the model predicts worst: what a thought could save most of."""

from torch import Tensor

from rntp.placement import register
from rntp.types import PlacementInputs


@register("surprise")
def surprise(inputs: PlacementInputs) -> Tensor:
    """Score = −log p(x_p | context), nats, [L]. Noise has the highest: see `placement.band`."""
    return inputs.nll_L
