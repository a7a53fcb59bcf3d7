"""Language models that run token trees: loading, checking, attention and head."""

from rntp.model.language_model import (
    ATTENTION,
    LanguageModel,
    adopt_model,
    cast_parameters,
    load_model,
    pick_device,
)

__all__ = [
    "ATTENTION",
    "LanguageModel",
    "adopt_model",
    "cast_parameters",
    "load_model",
    "pick_device",
]
