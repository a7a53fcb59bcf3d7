"""Documents that carry their token ids, in corpora whose manifest says so (`content: token_ids`).

Think markers are written as codes below 0, since a marker's id depends on the run's model; every
other id is the corpus' tokenizer's. Only `ShardWriter(content="token_ids")` makes such a corpus,
and the manifest's digest covers it: in a corpus of texts, a document's metadata cannot ask for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rntp.data.shard_format import Document
from rntp.errors import DataError

OPEN, CLOSE = -1, -2

Markers = tuple[int, int]
"""Ids of the open and the close marker."""


def to_codes(ids: Sequence[int], markers: Markers) -> list[int]:
    """Token ids with markers as codes, for a document's metadata."""
    code = {markers[0]: OPEN, markers[1]: CLOSE}
    return [code.get(i, i) for i in ids]


def from_codes(document: Document, markers: Markers) -> Tensor:
    """Read the ids of a document: int64 [n].

    Raises DataError where it has none, or malformed ones, or the id of a marker that is not written
    as its code: then a text spelt it.
    """
    codes = document.metadata.get("token_ids")
    if not isinstance(codes, list) or not all(type(c) is int and c >= CLOSE for c in codes):
        raise DataError(
            f"document {document.id} carries no usable token ids, though its corpus is of token "
            "ids; write the corpus again"
        )
    ids = torch.tensor(codes, dtype=torch.int64)
    if torch.isin(ids, torch.tensor(markers)).any():
        raise DataError(
            f"document {document.id} holds the id of a think marker where no thought was written: "
            "its text spells one; write the corpus again"
        )
    ids[ids == OPEN], ids[ids == CLOSE] = markers
    return ids
