"""Positions at even distances, as in a corpus with a thought every n tokens."""

import torch
from torch import Tensor

from rntp.placement import register
from rntp.types import PlacementInputs


@register("even")
def even(inputs: PlacementInputs) -> Tensor:
    """Score = 1 on the grid ⌊(k + u) n / K⌋, k = 0 … K − 1, plus noise in [0, 1), [L].

    n: eligible positions. u: one uniform draw a context, so that over many contexts no place of
    the page is preferred.
    """
    total = len(inputs.noise_L)
    grid = (torch.arange(inputs.count) + inputs.noise_L[0]) * total / inputs.count
    on_grid = torch.zeros(total, dtype=torch.float64)
    on_grid[grid.long()] = 1
    return on_grid + inputs.noise_L
