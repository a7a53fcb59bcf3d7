"""As many positions of every class of token as of any other: for comparing the classes."""

import torch
from torch import Tensor

from rntp.errors import DataError
from rntp.placement import register
from rntp.types import PlacementInputs


@register("by_class")
def by_class(inputs: PlacementInputs) -> Tensor:
    """Score = −(rank of the position in its class, by noise) + a tie-break in [0, 1), [L].

    So every class gets one position before any gets two. Tokens of no known class come last.
    """
    if inputs.class_L is None:
        raise DataError(
            "placement policy by_class needs a corpus whose documents carry labels, and this one "
            "has none; set the policy to random, entropy or learnability"
        )
    by_noise = inputs.noise_L.argsort(descending=True, stable=True)
    together = by_noise[inputs.class_L[by_noise].argsort(stable=True)]
    sizes = inputs.class_L[together].unique_consecutive(return_counts=True)[1]
    place = torch.arange(len(together))
    rank = torch.empty_like(place)
    rank[together] = place - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    # The noise's own size goes with the rank: the best of a large class is larger than that of a
    # small one. Its low bits do not know.
    tie_break = (inputs.noise_L * 2**20) % 1
    unknown = (inputs.class_L < 0) * len(together)
    return tie_break - rank - unknown
