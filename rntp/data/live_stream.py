"""Contexts by ordinal out of pages that are read as they come (see `rntp.data.live`).

Ordinals go through the training documents in the source's order, BLOCK at a time: within a block
they are permuted by `Order`. So a context is a function of the pages, the seed and its ordinal, as
in a corpus; only that a source has to be read from its start to answer, and that nothing but its
own hash says that it is the same source. Every block that is read again, in the next pass or after
a resume, has to have the hash it had.

What was read last is kept; an ordinal that lies behind it costs a new reading.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch

from rntp.data.damage import Damage
from rntp.data.live import Encode, Live, LiveDocument, Mark, Reading, extractor, no_document
from rntp.data.order import Order
from rntp.data.stream import Read, Windows, is_heldout, window_start, window_tokens
from rntp.data.windows import Pieces
from rntp.errors import DataError
from rntp.types import Context

BLOCK = 512
"""Documents that are shuffled among themselves. Part of what an ordinal means."""

_KEPT = 2  # blocks beside the first and the newest
_UNKNOWN = 1 << 40  # more ordinals than a run gets to
_REMEDY = (
    "the source has changed since; restore it, go on with --accept-data-change after a restart, "
    "or prepare it, which keeps what is trained on"
)


@dataclass(frozen=True)
class Block:
    """Neighbouring documents, permuted among themselves. first: number, within a pass, of the
    first of their items (documents, or pieces of them). before, after: what lies on either side.
    counts: what became of the pages before it.
    """

    number: int
    first: int
    documents: Sequence[LiveDocument]
    pieces: Pieces | None
    before: Mark
    after: Mark
    counts: Mapping[str, int]

    @property
    def items(self) -> int:
        return len(self.documents) if self.pieces is None else len(self.pieces)

    def shuffled(
        self, item: int, seed: int, visit: int
    ) -> tuple[LiveDocument, tuple[int, int] | None]:
        """Document and piece that come in place `item` in this pass."""
        order = Order(self.items, seed)
        # A permutation of its own for every block of every pass.
        drawn, _ = order[(visit << 24 | self.number) * self.items + item]
        if self.pieces is None:
            return self.documents[drawn], None
        document, start, end = self.pieces[drawn]
        return self.documents[document], (start, end)


class Blocks:
    """One reading of a source, block by block, of the documents of one split."""

    def __init__(
        self,
        live: Live,
        encode: Encode,
        keep: Callable[[LiveDocument], bool],
        window: int,
        min_tokens: int,
        windows: Windows,
        max_documents: int,
    ) -> None:
        """keep: whether a document is of the split and long enough. Others as `LiveStream`."""
        self.reading = Reading(live, encode)
        self.items = 0
        self.number = 0
        self._documents: Iterator[LiveDocument] = filter(keep, self.reading.documents())
        self._left = max_documents or _UNKNOWN
        self._pieces: Callable[[np.ndarray], Pieces] | None = None
        if windows == "all":
            self._pieces = lambda lengths: Pieces(lengths, window, min_tokens)

    def jump(self, number: int, first: int) -> None:
        """Say that block `number` with item `first` is next."""
        self.number, self.items, self._left = number, first, self._left - number * BLOCK

    def next(self) -> Block | None:
        """The next block; None at the end."""
        before, counts = self.reading.mark, self.reading.counts
        wanted = min(BLOCK, self._left)
        documents: list[LiveDocument] = []
        while len(documents) < wanted and (document := next(self._documents, None)) is not None:
            documents.append(document)
        if not documents:
            return None
        pieces = None
        if self._pieces is not None:
            pieces = self._pieces(np.array([len(d.token_ids) for d in documents]))
        after = self.reading.mark
        block = Block(self.number, self.items, documents, pieces, before, after, counts)
        self.number, self.items = self.number + 1, self.items + block.items
        self._left -= len(documents)
        return block


class Cutter:
    """Contexts out of documents: windows, with the prefix before them."""

    def __init__(self, prefix_ids: Sequence[int], seed: int, context_tokens: int) -> None:
        self.window = window_tokens(context_tokens, len(prefix_ids))
        self._prefix = torch.tensor(list(prefix_ids), dtype=torch.int64)
        self._seed = seed

    def __call__(
        self, ordinal: int, document: LiveDocument, visit: int, piece: tuple[int, int] | None
    ) -> Context:
        """piece: first token and end; None draws a window."""
        ids = document.token_ids
        if piece is None:
            start = window_start(self._seed, ordinal, len(ids), self.window)
            piece = start, start + self.window
        return Context(
            ordinal=ordinal,
            document_id=document.id,
            token_ids=torch.cat([self._prefix, ids[slice(*piece)].to(torch.int64)]),
            title=document.title,
            start=piece[0],
            visit=visit,
        )


class _Undamaged:
    """A stream whose source is whole, or ends the run."""

    num_too_short = 0  # they are not counted

    def exclude(self, read: Read) -> None:
        """Nothing ever is."""

    def know(self, damaged: Iterable[tuple[str, Damage]]) -> None:
        """Nothing ever is."""

    @property
    def damaged(self) -> list[tuple[str, Damage]]:
        return []


class LiveStream(_Undamaged):
    """`stream[ordinal]` is a context of the training documents; see the module.

    num_documents: contexts of a pass, once one has been read to its end; before, more than a run
    gets to.
    """

    def __init__(
        self,
        live: Live,
        encode: Encode,
        *,
        prefix_ids: Sequence[int] = (),
        seed: int,
        context_tokens: int,
        min_document_tokens: int,
        heldout_fraction: float,
        max_documents: int = 0,
        windows: Windows = "one",
    ) -> None:
        """Parameters as of `ContextStream`; max_documents are the source's first. Reads nothing."""
        self._live = live
        self._encode = encode
        self._cut = Cutter(prefix_ids, seed, context_tokens)
        self._seed = seed
        self._min_tokens = min_document_tokens
        self._heldout_fraction = heldout_fraction
        self._max_documents = max_documents
        self._windows = windows
        self._lock = Lock()
        self._pass_items: int | None = None
        self._marks: dict[int, tuple[Mark, Mark]] = {}
        self._kept: list[Block] = []
        self._blocks = self._open()
        if windows == "all":  # raises where pieces would be too short, before anything is read
            Pieces(np.zeros(0, dtype=np.int64), self._cut.window, min_document_tokens)

    @property
    def num_documents(self) -> int:
        """See the class."""
        return self._pass_items or _UNKNOWN

    @property
    def funnel(self) -> dict[str, int]:
        """What became of the pages that this pass has read so far, as a preparation counts them
        (see `Reading.counts`); of other splits, too."""
        with self._lock:
            return self._blocks.reading.counts

    def __getitem__(self, ordinal: int) -> Context:
        return self.read(ordinal).context

    def read(self, ordinal: int) -> Read:
        """The context; nothing is replaced. Raises DataError where the source is damaged, gone, or
        not what it was, and where it has no document that is long enough."""
        with self._lock:
            visit, item, block = self._find(ordinal)
        document, piece = block.shuffled(item, self._seed, visit)
        return Read(self._cut(ordinal, document, visit, piece))

    def place(self, frontier: int, check: Callable[[], None]) -> dict[str, Any] | None:
        """Return what a checkpoint needs so that `go_to` can go on with ordinal `frontier`: how far
        the source was read before and after the block of the ordinal before it; None at the start.
        check: called now and then."""
        if frontier == 0:
            return None
        with self._lock:
            _, _, block = self._find(frontier - 1, check)
        return {
            "block": block.number,
            "first": block.first,
            "before": [block.before.pages, block.before.digest],
            "after": [block.after.pages, block.after.digest],
            "counts": dict(block.counts),
            "pass_items": self._pass_items,
            "extractor": extractor(),
        }

    def go_to(self, place: Mapping[str, Any], check: Callable[[], None]) -> list[str]:
        """Read on from `place`, passing over the pages before it; check: called now and then.

        Returns what is not as it was, one line each, or nothing; then the stream stands at its
        start. Raises as `read`, and what `check` raises.
        """
        if place["extractor"] != extractor():
            return [f"extractor: {place['extractor']} there, {extractor()} here"]
        before, after = (Mark(*place[name]) for name in ("before", "after"))
        with self._lock:
            blocks = self._blocks
            block = next((b for b in self._kept if b.first == place["first"]), None)
            if block is None:
                blocks = self._open()
                blocks.reading.skip(before.pages, check, place.get("counts", {}))
                if blocks.reading.mark != before:
                    return [f"pages: {before} there, {blocks.reading.mark} here"]
                blocks.jump(place["block"], place["first"])
                block = blocks.next()
            if block is None or block.after != after:
                found = block.after if block else blocks.reading.mark
                return [f"pages: {after} there, {found} here"]
            self._blocks = blocks
            self._keep(block)
            if self._pass_items is None:
                self._pass_items = place["pass_items"]
        return []

    def _open(self) -> Blocks:
        return Blocks(
            self._live,
            self._encode,
            self._wanted,
            self._cut.window,
            self._min_tokens,
            self._windows,
            self._max_documents,
        )

    def _wanted(self, document: LiveDocument) -> bool:
        heldout = is_heldout(document.id, self._heldout_fraction)
        return not heldout and len(document.token_ids) >= self._min_tokens

    def _find(
        self, ordinal: int, check: Callable[[], None] = lambda: None
    ) -> tuple[int, int, Block]:
        """Pass, item within its block, and block of an ordinal."""
        while True:
            visit, item = divmod(ordinal, self.num_documents)
            for kept in self._kept:
                if kept.first <= item < kept.first + kept.items:
                    return visit, item - kept.first, kept
            if item < self._blocks.items:
                self._blocks = self._open()
            try:
                check()
                block = self._blocks.next()
            except BaseException:
                # What broke off would pass for the end of the source if it was asked again.
                self._blocks = self._open()
                raise
            if block is None:
                self._end_of_pass()
            else:
                self._keep(block)

    def _keep(self, block: Block) -> None:
        marks = self._marks.setdefault(block.first, (block.before, block.after))
        if marks != (block.before, block.after):
            raise DataError(
                f"{self._live.source}: {marks[1]} before, {block.after} now that they are read "
                f"again; {_REMEDY}"
            )
        # The first block stays: start-up and evaluations of reused pages look at it.
        zero = [b for b in self._kept if b.first == 0 != block.first]
        others = [b for b in self._kept if b.first not in (0, block.first)]
        self._kept = [*zero, *others[-_KEPT:], block]

    def _end_of_pass(self) -> None:
        items = self._blocks.items
        if items == 0:
            raise no_document(self._live, self._blocks.reading.counts, self._min_tokens, "train")
        if self._pass_items not in (None, items):
            raise DataError(
                f"{self._live.source} gave {self._pass_items} contexts in an earlier pass and "
                f"gives {items} now; {_REMEDY}"
            )
        self._pass_items = items


class LiveHeldout(_Undamaged):
    """The first held-out documents of a source, read when it is opened, in its order.

    digest: of their ids, which are hashes of their texts.
    """

    def __init__(
        self,
        live: Live,
        encode: Encode,
        *,
        count: int,
        prefix_ids: Sequence[int] = (),
        seed: int,
        context_tokens: int,
        min_document_tokens: int,
        heldout_fraction: float,
    ) -> None:
        """count: documents to look for. Raises DataError where there is none."""
        self._cut = Cutter(prefix_ids, seed, context_tokens)
        reading = Reading(live, encode)
        self._documents: list[LiveDocument] = []
        ids: dict[str, None] = {}
        for document in reading.documents():
            usable = len(document.token_ids) >= min_document_tokens and document.id not in ids
            if usable and is_heldout(document.id, heldout_fraction):
                self._documents.append(document)
                ids[document.id] = None
                if len(ids) == count:
                    break
        if not self._documents:
            raise no_document(live, reading.counts, min_document_tokens, "held-out")
        self.num_documents = len(self._documents)
        self.digest = hashlib.sha256(" ".join(ids).encode()).hexdigest()

    def __getitem__(self, ordinal: int) -> Context:
        visit, item = divmod(ordinal, self.num_documents)
        return self._cut(ordinal, self._documents[item], visit, None)

    def read(self, ordinal: int) -> Read:
        return Read(self[ordinal])
