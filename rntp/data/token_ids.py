"""Documents that carry their token ids, in corpora whose manifest says so (`content: token_ids`).

Markers, of thoughts and of tools, are written as codes below 0, since a marker's id depends on the
run's model; every other id is the corpus' tokenizer's. Only `ShardWriter(content="token_ids")`
makes such a corpus, and the manifest's digest covers it: in a corpus of texts, a document's
metadata cannot ask for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rntp.data.shard_format import Document
from rntp.errors import DataError

OPEN, CLOSE, TOOL_OPEN, TOOL_CLOSE, RESULT_OPEN, RESULT_CLOSE = range(-1, -7, -1)
CODES = (OPEN, CLOSE, TOOL_OPEN, TOOL_CLOSE, RESULT_OPEN, RESULT_CLOSE)

Markers = tuple[int, ...]
"""Ids of the open and the close marker of thoughts and, of a run with tools, of their calls and
results."""


def to_codes(ids: Sequence[int], markers: Markers) -> list[int]:
    """Token ids with markers as codes, for a document's metadata."""
    code = dict(zip(markers, CODES, strict=False))
    return [code.get(i, i) for i in ids]


def from_codes(document: Document, markers: Markers) -> Tensor:
    """Read the ids of a document: int64 [n].

    Raises DataError where it has none, or malformed ones, or the id of a marker that is not written
    as its code: then a text spelt it; and where it has calls of tools and the run has no markers
    for them.
    """
    codes = document.metadata.get("token_ids")
    if not isinstance(codes, list) or not all(type(c) is int and c >= min(CODES) for c in codes):
        raise DataError(
            f"document {document.id} carries no usable token ids, though its corpus is of token "
            "ids; write the corpus again"
        )
    ids = torch.tensor(codes, dtype=torch.int64)
    if len(ids) and ids.min() < CODES[len(markers) - 1]:
        raise DataError(
            f"document {document.id} has calls of tools, and this run has no markers for them; "
            "name the tools in thought.tools.use"
        )
    if torch.isin(ids, torch.tensor(markers)).any():
        raise DataError(
            f"document {document.id} holds the id of a marker where no thought was written: "
            "its text spells one; write the corpus again"
        )
    for code, marker in zip(CODES, markers, strict=False):
        ids[ids == code] = marker
    return ids


def given(document: Document) -> Tensor:
    """Find what is only read in a document of `from_codes`: its first `given_tokens`, and what
    tools gave, results with their markers. bool [n], or empty where there is nothing."""
    codes = torch.tensor(document.metadata["token_ids"], dtype=torch.int64)
    opened, closed = codes == RESULT_OPEN, codes == RESULT_CLOSE
    inside = opened.long().cumsum(0) > closed.long().cumsum(0)
    first = torch.arange(len(codes)) < int(str(document.metadata.get("given_tokens", 0)))
    only_read = inside | closed | first
    return only_read if only_read.any() else torch.zeros(0, dtype=torch.bool)
