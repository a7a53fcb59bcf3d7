"""rntp: reasoning next-token prediction, reinforcement learning on ordinary web text.

Names are loaded on first use, so that `import rntp` costs nothing and needs no GPU package.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rntp import placement as placement
    from rntp import rewards as rewards
    from rntp.config import Config as Config
    from rntp.evaluation import evaluate as evaluate
    from rntp.model import LanguageModel as LanguageModel
    from rntp.model import load_model as load_model
    from rntp.model.thought_tree import TokenTree as TokenTree
    from rntp.trainer import Trainer as Trainer

_MODULE_OF = {
    "Config": "rntp.config",
    "LanguageModel": "rntp.model",
    "TokenTree": "rntp.model.thought_tree",
    "Trainer": "rntp.trainer",
    "evaluate": "rntp.evaluation",
    "load_model": "rntp.model",
    "placement": "",
    "rewards": "",
}

__all__ = [
    "Config",
    "LanguageModel",
    "TokenTree",
    "Trainer",
    "evaluate",
    "load_model",
    "placement",
    "rewards",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'rntp' has no attribute {name!r}")
    module = _MODULE_OF[name]
    return (
        getattr(importlib.import_module(module), name)
        if module
        else importlib.import_module(f"rntp.{name}")
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
