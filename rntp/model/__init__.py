"""Language models that run token trees: loading, checking, attention and head."""

from rntp.model.language_model import (
    LanguageModel,
    Sharing,
    adopt_model,
    cast_parameters,
    load_model,
    pick_device,
)

__all__ = [
    "LanguageModel",
    "Sharing",
    "adopt_model",
    "cast_parameters",
    "load_model",
    "pick_device",
]
