"""Several corpora by weight, as one stream with the guarantees of each.

Ordinals come in blocks of SLOTS. A keyed permutation of the block's places (see `rntp.data.order`)
deals every corpus its exact share of each block, and its own ordinals go up by that share from one
block to the next. So every ordinal of every corpus comes exactly once, shares are exact after every
block, and any ordinal is answered in O(1): nothing is drawn, and there is nothing to save.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from rntp.data.damage import Damage
from rntp.data.manifest import Manifest
from rntp.data.order import Order
from rntp.data.stream import Read, Stream
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

    def __init__(self, shares: Sequence[int], seed: int) -> None:
        """shares: of each corpus, in places of a block; they add up to SLOTS."""
        assert sum(shares) == SLOTS
        self._shares = shares
        self._ends = list(accumulate(shares))
        # The corpus of every place; and a place's number within its corpus.
        self._corpus = [c for c, share in enumerate(shares) for _ in range(share)]
        # Another seed than that of the corpora, or a mixture would go through both in step.
        self._order = Order(SLOTS, int.from_bytes(_hash(f"{seed}/mixture"), "little"))

    def __getitem__(self, ordinal: int) -> tuple[int, int]:
        place, block = self._order[ordinal]
        corpus = self._corpus[place]
        share = self._shares[corpus]
        return corpus, block * share + place - (self._ends[corpus] - share)


class Mixture:
    """The manifests of several corpora, for those who ask what the data of a run is."""

    def __init__(self, manifests: Sequence[Manifest], shares: Sequence[int]) -> None:
        """Manifests of one tokenizer, which the caller checks; see `shares`."""
        self.manifests = list(manifests)
        self.shares = list(shares)
        parts = [[m.digest, share] for m, share in zip(manifests, shares, strict=True)]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.num_docs = sum(m.num_docs for m in manifests)
        self.total_tokens = sum(m.total_tokens for m in manifests)


class MixedStream:
    """`stream[ordinal]` is a context of one of the corpora, as `Deal` deals them.

    num_documents: ordinals before some corpus begins its second pass. num_too_short: of all.
    """

    def __init__(self, streams: Sequence[Stream], shares: Sequence[int], seed: int) -> None:
        self._streams = list(streams)
        self._deal = Deal(shares, seed)
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
        self.set_aside(read)
        return read.context

    def read(self, ordinal: int) -> Read:
        """As `ContextStream.read`; the context has the ordinal of the mixture."""
        corpus, inner = self._deal[ordinal]
        found = self._streams[corpus].read(inner)
        return replace(found, context=replace(found.context, ordinal=ordinal), corpus=corpus)

    def set_aside(self, read: Read) -> None:
        """As `ContextStream.set_aside`; every corpus has its own budget."""
        self._streams[read.corpus].set_aside(read)

    def know(self, damaged: Iterable[tuple[str, Damage]]) -> None:
        """As `ContextStream.know`."""
        for stream in self._streams:
            stream.know(damaged)

    @property
    def damaged(self) -> list[tuple[str, Damage]]:
        return [found for stream in self._streams for found in stream.damaged]


def stream_seed(seed: int, manifest: Manifest) -> int:
    """Seed of one corpus of a mixture: two of the same size are not gone through in step."""
    return int.from_bytes(_hash(f"{seed}/{manifest.digest}"), "little")


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=6).digest()
