"""Which documents of a corpus a stream hands out, by their place among these, in constant memory.

The documents that are chosen are counted once for every 1024 of the corpus. The document at a place
is then found by the counts and by looking at 1024 documents. For 100 million documents that is
0.8 MB, where a list of their numbers takes 800 MB. Counts of corpora with mapped indexes are kept
in the user's cache, so that only the first run with a split looks at all documents.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from rntp.data.documents import Documents
from rntp.data.index_file import REMAKE
from rntp.data.windows import Pieces, cut
from rntp.errors import DataError
from rntp.runtime.files import write_bytes_atomic

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, Split] = ("train", "heldout")
Place = tuple[int, int, int]
"""Number of a document, and first token and end of a piece of it: 0 and 0 where it is not cut."""

_BLOCK = 1024  # 12 KB to look at, some 20 µs
_VERSION = 2
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Choice:
    """Documents of a split with at least min_tokens. heldout_fraction: as of `ContextStream`.
    window: 0 for each document once, otherwise each comes in pieces of at most so many tokens."""

    split: Split
    heldout_fraction: float
    min_tokens: int
    window: int = 0

    def members(self, draws: np.ndarray) -> np.ndarray:
        """Whether each document is of the split; bool [n]."""
        heldout = draws < self.heldout_fraction
        return heldout if self.split == "heldout" else ~heldout

    def weights(self, num_tokens: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """How often each document is chosen: bool [n], or of windows int64 [n], its pieces or 0."""
        chosen = self.members(draws) & (num_tokens >= self.min_tokens)
        if not self.window:
            return chosen
        return np.where(chosen, -(-num_tokens.astype(np.int64) // self.window), 0)


class Places(Protocol):
    """What a pass goes through, by place."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int) -> Place: ...


class Selection:
    """`selection[place]` is what a `Choice` gives at a place, 0 … len-1, in document order.

    num_members: documents of the split.
    """

    def __init__(self, documents: Documents, choice: Choice, cache: Path) -> None:
        """cache: folder for counts of mapped indexes; made where it is not there."""
        self._documents = documents
        self._choice = choice
        found = _kept(documents, choice, cache)
        if found is None:
            # A run wants both splits: one look at all documents counts them.
            both = [replace(choice, split=split) for split in SPLITS]
            counted = dict(zip(both, _counted(documents, both), strict=True))
            for each, counts in counted.items():
                _keep(documents, each, cache, counts)
            found = counted[choice]
        self.num_members = int(found[0])
        self._ends = found[1:]

    @property
    def longest(self) -> int:
        """Tokens of the longest document of the split; looks at all of them."""
        inside = (t[self._choice.members(draws)] for t, draws in self._documents.scan())
        return max(int(tokens.max(initial=0)) for tokens in inside)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: int) -> Place:
        block = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[block - 1]) if block else 0
        first = block * _BLOCK
        tokens, draws = self._documents.part(first, first + _BLOCK)
        weights = self._choice.weights(tokens, draws)
        ends = np.cumsum(weights)
        if before + int(ends[-1]) != self._ends[block]:
            raise DataError(
                f"the index has changed since it was counted (documents {first} to "
                f"{first + len(tokens) - 1}); {REMAKE}"
            )
        inner = int(np.searchsorted(ends, place - before, side="right"))
        number, count = first + inner, int(weights[inner])
        if not self._choice.window:
            return number, 0, 0
        piece = place - before - (int(ends[inner]) - count)
        return number, *cut(piece, count, int(tokens[inner]))


class Listed:
    """Places of documents that are named one by one.

    numbers: int64 [n]. pieces: of these documents, or None for each once.
    """

    def __init__(self, numbers: np.ndarray, pieces: Pieces | None) -> None:
        self._numbers = numbers
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._numbers) if self._pieces is None else len(self._pieces)

    def __getitem__(self, place: int) -> Place:
        if self._pieces is None:
            return int(self._numbers[place]), 0, 0
        item, start, end = self._pieces[place]
        return int(self._numbers[item]), start, end


def _counted(documents: Documents, choices: Sequence[Choice]) -> list[np.ndarray]:
    """Members of the split, and how many places have come by the end of each block of documents;
    int64 [1 + blocks] for each choice."""
    members = [0] * len(choices)
    counts: list[list[np.ndarray]] = [[] for _ in choices]
    for tokens, draws in documents.scan():
        for n, choice in enumerate(choices):
            members[n] += int(np.count_nonzero(choice.members(draws)))
            weights = np.zeros(
                -(-len(tokens) // _BLOCK) * _BLOCK, np.int64 if choice.window else bool
            )
            weights[: len(tokens)] = choice.weights(tokens, draws)
            counts[n].append(weights.reshape(-1, _BLOCK).sum(axis=1))
    return [
        np.concatenate([[members[n]], np.cumsum(np.concatenate(counts[n]))])
        for n in range(len(choices))
    ]


def _path(documents: Documents, choice: Choice, cache: Path) -> Path:
    key = json.dumps([_VERSION, _BLOCK, documents.identity, asdict(choice)])
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.counts"


def _kept(documents: Documents, choice: Choice, cache: Path) -> np.ndarray | None:
    if not documents.identity:
        return None
    try:
        payload = _path(documents, choice, cache).read_bytes()
    except OSError:
        return None
    counts = payload[_DIGEST_BYTES:]
    whole = hashlib.sha256(counts).digest() == payload[:_DIGEST_BYTES]
    expected = 8 * (1 + -(-documents.num_docs // _BLOCK))
    # A damaged one is made again: it is known to be no more than a copy.
    return np.frombuffer(counts, "<i8") if whole and len(counts) == expected else None


def _keep(documents: Documents, choice: Choice, cache: Path, found: np.ndarray) -> None:
    if not documents.identity:
        return
    counts = found.astype("<i8").tobytes()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        path = _path(documents, choice, cache)
        write_bytes_atomic(path, hashlib.sha256(counts).digest() + counts)
    except OSError:
        return  # a cache that cannot be written costs the next run its seconds, and nothing else
