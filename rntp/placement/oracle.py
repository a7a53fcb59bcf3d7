"""Positions that a thought is known to help with: the upper bound for every other policy."""

from torch import Tensor

from rntp.errors import DataError
from rntp.placement import register
from rntp.types import PlacementInputs


@register("oracle")
def oracle(inputs: PlacementInputs) -> Tensor:
    """Score = 1 where the oracle gain is positive, plus noise in [0, 1), [L].

    Not the gain itself: its size would prefer one kind of helpful position to another.
    """
    if inputs.oracle_gain_L is None:
        raise DataError(
            "placement policy oracle needs a corpus whose documents carry labels, and this one has "
            "none; set the policy to random, entropy or learnability"
        )
    return (inputs.oracle_gain_L > 0).double() + inputs.noise_L
