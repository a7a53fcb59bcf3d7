"""The corpus as training reads it: shards and their manifest, the order, the stream of contexts.

Names are loaded on first use: who only writes or checks shards needs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rntp.data.manifest import Manifest as Manifest
    from rntp.data.manifest_writer import ShardWriter as ShardWriter
    from rntp.data.order import Order as Order
    from rntp.data.shard_format import Document as Document
    from rntp.data.stream import ContextStream as ContextStream
    from rntp.data.stream import check_tokenizer as check_tokenizer
    from rntp.data.stream import data_digest as data_digest

_MODULE_OF = {
    "ContextStream": "stream",
    "Document": "shard_format",
    "Manifest": "manifest",
    "Order": "order",
    "ShardWriter": "manifest_writer",
    "check_tokenizer": "stream",
    "data_digest": "stream",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"rntp.data.{_MODULE_OF[name]}"), name)
