"""The beginnings of sentences, where a whole sentence is to be predicted (RLPT, 2509.19249)."""

from torch import Tensor

from rntp.placement import register
from rntp.types import PlacementInputs


@register("sentence_starts")
def sentence_starts(inputs: PlacementInputs) -> Tensor:
    """Score = 1 where a sentence begins, plus noise in [0, 1), [L].

    A page with fewer sentences than positions gets random ones besides.
    """
    assert inputs.starts_sentence_L is not None
    return inputs.starts_sentence_L.double() + inputs.noise_L
