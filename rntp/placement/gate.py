"""Positions where the gate expects thinking to gain, or is unsure (Thompson sampling, 1707.02038).

What it expects is learnt along with the run from every group; see `rntp.gate.along`. A share of the
positions goes anywhere, so that no kind of position is given up for good.
"""

import math

from torch import Tensor

from rntp.placement import register
from rntp.types import PlacementInputs


@register("gate")
def gate(inputs: PlacementInputs) -> Tensor:
    """The gain that the gate draws for each position, and the highest score for those that go
    anywhere: `random_share` of them, rounded up, [L]. Without any gains yet all go anywhere."""
    noise, drawn = inputs.noise_L, inputs.learned_L.double()
    if not drawn.any():
        return noise
    anywhere = min(math.ceil(inputs.random_share * inputs.count), len(noise))
    score = drawn.clone()
    if anywhere:
        chosen = noise.topk(anywhere).indices
        score[chosen] = drawn.max() + 1 + noise[chosen]
    return score
