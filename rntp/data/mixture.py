"""Several corpora by weight, as one stream with the guarantees of each.

Ordinals come in blocks of SLOTS. A table deals the places of a block, each to the corpus that is
furthest behind its share, and the corpora's own ordinals go up from one block to the next. So every
ordinal of every corpus comes exactly once and in order, shares are exact after every block and
within one context all along, and any ordinal is answered in O(1): there is nothing to save. Nothing
is drawn: each corpus is shuffled in itself.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rntp.data.damage import Damage
from rntp.data.manifest import Manifest
from rntp.data.stream import Read, Stream
from rntp.data.tasks import TaskSource
from rntp.errors import ConfigError
from rntp.types import Context

SLOTS = 1000


def shares(weights: Mapping[str, float]) -> list[int]:
    """Places of each corpus among SLOTS, by largest remainder; in the order of `weights`.

    Raises ConfigError for a weight too small to get one.
    """
    total = sum(weights.values())
    exact = [weight / total * SLOTS for weight in weights.values()]
    found = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda n: (found[n] - exact[n], n))
    for n in by_remainder[: SLOTS - sum(found)]:
        found[n] += 1
    for name, share in zip(weights, found, strict=True):
        if share == 0:
            raise ConfigError(
                f"data.source: {name} has less than 1 context in {SLOTS}; raise its weight, or "
                "leave it out"
            )
    return found


class Deal:
    """`deal[ordinal]` is (corpus, ordinal within the corpus)."""

    def __init__(self, shares: Sequence[int]) -> None:
        """shares: of each corpus, in places of a block; they add up to SLOTS."""
        assert sum(shares) == SLOTS
        self._shares = shares
        dealt = [0] * len(shares)
        self._places = []
        for place in range(1, SLOTS + 1):
            # Who is furthest behind its share of the places so far; the first of equals.
            owed = [share * place - SLOTS * n for share, n in zip(shares, dealt, strict=True)]
            corpus = owed.index(max(owed))
            self._places.append((corpus, dealt[corpus]))
            dealt[corpus] += 1

    def __getitem__(self, ordinal: int) -> tuple[int, int]:
        block, place = divmod(ordinal, SLOTS)
        corpus, before = self._places[place]
        return corpus, block * self._shares[corpus] + before


class Mixture:
    """Several corpora, and sources of tasks, for those who ask what the data of a run is.

    manifests: of the corpora among the parts.
    """

    def __init__(self, parts: Sequence[Manifest | TaskSource], shares: Sequence[int]) -> None:
        """Corpora of one tokenizer, which the caller checks; see `shares`."""
        self.parts = list(parts)
        self.manifests = [part for part in parts if isinstance(part, Manifest)]
        self.shares = list(shares)
        facts = [[part.digest, share] for part, share in zip(parts, shares, strict=True)]
        self.digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self.num_docs = sum(part.num_docs for part in parts)
        self.total_tokens = sum(part.total_tokens for part in parts)


class MixedStream:
    """`stream[ordinal]` is a context of one of the corpora, as `Deal` deals them.

    num_documents: ordinals before some corpus begins its second pass. num_too_short: of all.
    """

    def __init__(self, streams: Sequence[Stream], shares: Sequence[int]) -> None:
        self._streams = list(streams)
        self._deal = Deal(shares)
        blocks = min(s.num_documents // share for s, share in zip(streams, shares, strict=True))
        self.num_documents = blocks * SLOTS
        while all(
            inner < streams[corpus].num_documents
            for corpus, inner in [self._deal[self.num_documents]]
        ):
            self.num_documents += 1
        self.num_too_short = sum(s.num_too_short for s in streams)

    def __getitem__(self, ordinal: int) -> Context:
        read = self.read(ordinal)
        self.exclude(read)
        return read.context

    def read(self, ordinal: int) -> Read:
        """Read as `ContextStream.read` does; the context has the ordinal of the mixture."""
        corpus, inner = self._deal[ordinal]
        found = self._streams[corpus].read(inner)
        return replace(found, context=replace(found.context, ordinal=ordinal), corpus=corpus)

    def exclude(self, read: Read) -> None:
        """Exclude as `ContextStream.exclude` does; every corpus has its own budget."""
        self._streams[read.corpus].exclude(read)

    def know(self, damaged: Iterable[tuple[str, Damage]]) -> None:
        """Take note as `ContextStream.know` does."""
        for stream in self._streams:
            stream.know(damaged)

    @property
    def damaged(self) -> list[tuple[str, Damage]]:
        return [found for stream in self._streams for found in stream.damaged]


def stream_seed(seed: int, part: Manifest | TaskSource) -> int:
    """Seed of one corpus of a mixture: two of the same size are not gone through in step."""
    return int.from_bytes(_hash(f"{seed}/{part.digest}"), "little")


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=6).digest()
