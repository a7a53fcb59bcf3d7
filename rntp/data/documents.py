"""What the index of a corpus says of its documents, by number: in memory, or mapped from files.

`ShardIndexes` holds the indexes of all shards in memory, 112 bytes a document and more; what opens
in constant time and memory is `rntp.data.index_file.MappedIndex`. Both say the same.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from rntp import rng
from rntp.data.shard_format import IDS_INDEX_DTYPE, INDEX_DTYPE, ShardFacts
from rntp.data.storage import Storage
from rntp.errors import DataError

RESTORE = "restore the file from a copy, or run `rntp data prep` again"

Columns = tuple[np.ndarray, np.ndarray]
"""`num_tokens` and `draws` of the same documents."""


class DamagedRow(DataError):
    """A row of an index that is not as it was written."""


class Documents(Protocol):
    """An index. identity: of the columns that `scan` gives, "" where nothing made of them is worth
    keeping."""

    num_docs: int
    identity: str

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each document without special tokens; int32 or int64 [num_docs]."""
        ...

    @property
    def draws(self) -> np.ndarray:
        """`heldout_draw` of each document; float64 [num_docs]."""
        ...

    def row(self, number: int) -> dict[str, Any]:
        """Columns of one document as Python's own types. Raises DamagedRow."""
        ...

    def document_id(self, number: int) -> str: ...

    def document_ids(self) -> Iterator[str]: ...

    def ends(self, first: int, end: int, column: str) -> np.ndarray:
        """Where the last members of documents first … end-1 end in their shards; int64."""
        ...

    def part(self, first: int, end: int) -> Columns:
        """`num_tokens` and `draws` of some documents, fewer where the corpus ends."""
        ...

    def scan(self) -> Iterator[Columns]:
        """`num_tokens` and `draws` from the first document to the last, in parts whose lengths are
        multiples of 2^20 but for the last. Raises DataError where they are damaged."""
        ...


class ShardIndexes:
    """The indexes of all shards, read and checked whole."""

    identity = ""

    def __init__(self, storage: Storage, shards: Sequence[ShardFacts], has_ids: bool) -> None:
        """Raises DataError for an index that is missing or not the manifest's."""
        self._rows = np.concatenate([load_index(storage, shard, has_ids) for shard in shards])
        self._columns = self._rows.dtype.names or ()
        self.num_docs = len(self._rows)
        self.num_tokens: np.ndarray = self._rows["num_tokens"].astype(np.int64)
        self.num_tokens.setflags(write=False)

    @cached_property
    def draws(self) -> np.ndarray:
        return np.array([heldout_draw(name) for name in self.document_ids()])

    def row(self, number: int) -> dict[str, Any]:
        # All columns at once: quicker than a column at a time.
        row = dict(zip(self._columns, self._rows[number].item(), strict=True))
        row["id"] = str(row["id"], "ascii")
        return row

    def document_id(self, number: int) -> str:
        return str(self._rows[number]["id"], "ascii")

    def document_ids(self) -> Iterator[str]:
        return (str(name, "ascii") for name in self._rows["id"].tolist())

    def ends(self, first: int, end: int, column: str) -> np.ndarray:
        rows = self._rows[first:end]
        return rows[f"{column}_offset"] + rows[f"{column}_bytes"]

    def part(self, first: int, end: int) -> Columns:
        return self.num_tokens[first:end], self.draws[first:end]

    def scan(self) -> Iterator[Columns]:
        yield self.num_tokens, self.draws


def heldout_draw(document_id: str) -> float:
    """The number in [0, 1) that decides a document's split: it is held out below the fraction."""
    return rng.fraction(document_id, "heldout")


def load_index(storage: Storage, shard: ShardFacts, has_ids: bool) -> np.ndarray:
    """Rows of one shard, of `INDEX_DTYPE` or `IDS_INDEX_DTYPE`.

    Raises DataError where they are not what the manifest says.
    """
    path = f"{storage.where}/{shard.index.name}"
    try:
        payload = storage.read(shard.index.name, 0, shard.index.bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {RESTORE}") from error
    if hashlib.sha256(payload).hexdigest() != shard.index.sha256:
        raise DataError(f"{path}: the SHA-256 is not the manifest's; {RESTORE}")
    index = np.load(io.BytesIO(payload), allow_pickle=False)
    if index.dtype != (IDS_INDEX_DTYPE if has_ids else INDEX_DTYPE) or len(index) != shard.num_docs:
        raise DataError(f"{path} is not an index of {shard.num_docs} documents; {RESTORE}")
    return index
