"""Language models that run token trees: loading, checking, attention and head."""

from rntp.model.attention import ATTENTION, own_attention
from rntp.model.head import Head
from rntp.model.language_model import (
    LanguageModel,
    Sharing,
    adopt_model,
    cast_parameters,
    load_model,
    pick_device,
)

__all__ = [
    "ATTENTION",
    "Head",
    "LanguageModel",
    "Sharing",
    "adopt_model",
    "cast_parameters",
    "load_model",
    "own_attention",
    "pick_device",
]
