"""The corpus as training reads it: shards and their manifest, the order, the stream of contexts."""

from rntp.data.manifest import Document, Manifest, ShardWriter
from rntp.data.order import Order
from rntp.data.stream import ContextStream, check_tokenizer, data_digest

__all__ = [
    "ContextStream",
    "Document",
    "Manifest",
    "Order",
    "ShardWriter",
    "check_tokenizer",
    "data_digest",
]
