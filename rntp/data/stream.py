"""Contexts by ordinal: the window of a document that a step sees, as a pure function.

Context number n depends on the corpus, the run seed and n, and on nothing else. So it is the same
after a resume and on any number of ranks, and there is no loader state to save.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rntp import rng
from rntp.data.damage import Damage, DamagedDocument, SetAside, listed
from rntp.data.documents import heldout_draw
from rntp.data.manifest import Manifest
from rntp.data.order import Order
from rntp.data.selection import Choice, Listed, Place, Places, Selection, Split
from rntp.data.shard_format import Document
from rntp.data.token_ids import Markers, from_codes, given
from rntp.data.windows import Pieces, check_window
from rntp.errors import DataError
from rntp.model.sources import cache_folder
from rntp.types import Context, Labels, Oracle

Windows = Literal["one", "all"]

_MAX_SUBSTITUTES = 64


@dataclass(frozen=True, slots=True)
class Read:
    """What came of one ordinal: its context, and the damaged documents met on the way to it.

    substituted: the context is of another document, since the one in turn is damaged. corpus: of
    a mixture, whose documents these are.
    """

    context: Context
    damaged: tuple[Damage, ...] = ()
    substituted: bool = False
    corpus: int = 0


class Stream(Protocol):
    """Contexts by ordinal. num_documents: ordinals from 0 on before one gives again what another
    gave. num_too_short: documents that are left out."""

    @property
    def num_documents(self) -> int: ...

    @property
    def num_too_short(self) -> int: ...

    def __getitem__(self, ordinal: int) -> Context: ...

    def read(self, ordinal: int) -> Read: ...

    def exclude(self, read: Read) -> None: ...

    def know(self, damaged: Iterable[tuple[str, Damage]]) -> None: ...

    @property
    def damaged(self) -> list[tuple[str, Damage]]: ...


class ContextStream:
    """`stream[ordinal]` is the `Context` with that ordinal, 0, 1, 2, … without end.

    Documents come in the order of `Order`, each once in a pass. A document longer than the window
    gives a window whose start is uniform over all possible starts, drawn anew at every ordinal; a
    shorter one comes whole. With windows "all" a pass is over all pieces of all documents instead,
    and gives every token once (see `rntp.data.windows`).

    A document that is damaged is replaced by another: the first whole one among those that a
    keyed draw from (ordinal, 1), (ordinal, 2), … names (see `rntp.data.damage`).

    num_documents: documents, or pieces, of this split that are handed out in a pass. num_too_short:
    documents of this split that are left out because they have fewer than min_document_tokens.
    """

    def __init__(
        self,
        manifest: Manifest,
        encode: Callable[[str], Tensor],
        *,
        prefix_ids: Sequence[int] = (),
        seed: int,
        context_tokens: int,
        min_document_tokens: int,
        heldout_fraction: float,
        split: Split,
        max_documents: int = 0,
        markers: Markers | None = None,
        unguarded: Callable[[str], Tensor] | None = None,
        windows: Windows = "one",
        max_damaged: float = 0.0,
        stored_ids: bool = True,
    ) -> None:
        """encode: text to int64 token ids [n] on the CPU, without special tokens.

        prefix_ids: ids before every window (such as BOS), counted within context_tokens.
        heldout_fraction: share of the documents, by a hash of their id, in the split "heldout".
        max_documents: hand out only the first so many of the order, again and again; 0 is all.
        markers: ids of the think markers: no page may hold them but where thoughts were written
        into it.
        unguarded: what `encode` gives where texts may spell markers, as they could when the corpus
        was prepared: such a document has more tokens here than in the index.
        max_damaged: share of the corpus' documents that may be damaged, rounded down.
        stored_ids: where the corpus has token ids beside its texts, take them and leave the texts
        unread. The contexts are the same.
        Raises DataError when no document is left, saying what to change, and for more damage than
        allowed; ConfigError where pieces would be too short.
        """
        self.manifest = manifest
        self.seed = seed
        self._encode = encode
        self._markers = markers
        self._unguarded = unguarded
        self._stored_ids = stored_ids and manifest.has_ids
        self._prefix = torch.tensor(list(prefix_ids), dtype=torch.int64)
        self._window_tokens = window_tokens(context_tokens, len(self._prefix))
        choice = Choice(split, heldout_fraction, min_document_tokens)
        documents = _select(manifest, choice)
        self.num_too_short = documents.num_members - len(documents)
        self._in_pieces = windows == "all"
        self._places = _places(
            manifest, choice, documents, max_documents, self._window_tokens * self._in_pieces, seed
        )
        self.num_documents = len(self._places)
        self._order = Order(self.num_documents, seed)
        most = int(max_damaged * manifest.num_docs)
        self._aside = SetAside(manifest.folder, most)
        self._aside.add(manifest.lost)

    def __getitem__(self, ordinal: int) -> Context:
        """The context, damage set aside and counted. Raises DataError past the budget for damage,
        and as `read`.
        """
        read = self.read(ordinal)
        self.exclude(read)
        return read.context

    def exclude(self, read: Read) -> None:
        """Count the damage that a read met. Raises DataError with the list past the budget."""
        self._aside.add(read.damaged)

    def know(self, damaged: Iterable[tuple[str, Damage]]) -> None:
        """Take over what `damaged` gave in an earlier part of the run."""
        self._aside.add(d for digest, d in damaged if digest == self.manifest.digest)

    @property
    def damaged(self) -> list[tuple[str, Damage]]:
        """(corpus digest, document) of everything that was set aside."""
        return [(self.manifest.digest, damage) for damage in self._aside]

    def read(self, ordinal: int) -> Read:
        """Read, check, tokenise and cut one document, whatever was set aside; pure.

        Raises DataError where the tokenizer is not the corpus', where the network does not answer,
        and where all substitutes are damaged, too.
        """
        first, visit = self._order[ordinal]
        met: dict[int, Damage] = {}
        for attempt in range(_MAX_SUBSTITUTES):
            item = first if attempt == 0 else self._substitute(ordinal, attempt)
            place = self._places[item]
            number = place[0]
            if number in self._aside or number in met:
                continue
            try:
                document, token_ids = self._load(number)
            except DamagedDocument as error:
                met[number] = error.damage
                continue
            context = self._context(ordinal, visit, document, token_ids, place)
            return Read(context, tuple(met.values()), attempt > 0)
        raise DataError(
            f"ordinal {ordinal} of {self.manifest.folder}: the document and all that could replace "
            "it are damaged; restore the shards from a copy, or run `rntp data prep` again:\n"
            + listed(list(met.values()))
        )

    def _substitute(self, ordinal: int, attempt: int) -> int:
        key = f"{self.seed}/substitute/{ordinal}/{attempt}".encode()
        draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
        return draw % self.num_documents

    def _context(
        self,
        ordinal: int,
        visit: int,
        document: Document,
        token_ids: Tensor,
        place: Place,
    ) -> Context:
        number, start, end = place
        expected = int(self.manifest.num_tokens[number])
        if token_ids.shape != (expected,) and not self._spells_markers(document, expected):
            raise DataError(
                f"document {document.id} has {expected} tokens by the index of "
                f"{self.manifest.folder} and {tuple(token_ids.shape)} by this tokenizer: the "
                f"corpus was prepared with another one ({self.manifest.tokenizer_spec}). Run "
                "`rntp data prep` again with this tokenizer"
            )
        if not self._in_pieces:
            start = window_start(self.seed, ordinal, len(token_ids), self._window_tokens)
            end = start + self._window_tokens
        window = token_ids[start:end].to(torch.int64)
        return Context(
            ordinal=ordinal,
            document_id=document.id,
            token_ids=torch.cat([self._prefix, window]) if len(self._prefix) else window.clone(),
            title=str(document.metadata.get("title", "")),
            start=start,
            visit=visit,
            labels=_labels(document, start, len(window), len(self._prefix)),
            given=self._given(document, start, end),
        )

    def _given(self, document: Document, start: int, end: int) -> Tensor:
        """What is only read in a window of a document, the prefix before it: bool [L], or empty."""
        if self.manifest.content == "text":
            return torch.zeros(0, dtype=torch.bool)
        only_read = given(document)
        before = torch.zeros(len(self._prefix) * bool(len(only_read)), dtype=torch.bool)
        return torch.cat([before, only_read[start:end]])

    def _load(self, number: int) -> tuple[Document, Tensor]:
        """A document and its token ids, [n] of an integer type."""
        if self._stored_ids:
            document, stored = self.manifest.read_ids(number)
            ids = torch.from_numpy(stored.astype(np.int64))
            if self._markers is None or not torch.isin(ids, torch.tensor(self._markers)).any():
                return document, ids
            # The page spells a marker that this tokenizer has: its text, encoded as characters.
        document = self.manifest.read(number)
        return document, self._ids_of(document)

    def _spells_markers(self, document: Document, expected: int) -> bool:
        """Whether a document of another length is the index' all the same: it spells a marker."""
        if self._unguarded is None or self.manifest.content != "text":
            return False
        return len(self._unguarded(document.text)) == expected

    def _ids_of(self, document: Document) -> Tensor:
        if self.manifest.content == "text":
            return self._encode(document.text)
        if self._markers is None:
            raise ValueError(f"{self.manifest.folder} carries token ids; pass the think markers")
        return from_codes(document, self._markers)


def window_tokens(context_tokens: int, prefix: int) -> int:
    """Tokens of text in a context. Raises ValueError where the prefix leaves none."""
    if context_tokens - prefix < 1:
        raise ValueError(
            f"context_tokens is {context_tokens}, which leaves no room for text after {prefix} "
            "prefix tokens; raise data.context_tokens"
        )
    return context_tokens - prefix


def window_start(seed: int, ordinal: int, num_tokens: int, window: int) -> int:
    """First token of the window of an ordinal: uniform over all that give a full window."""
    num_starts = num_tokens - window + 1
    # Of one possible start nothing need be drawn.
    return int(rng.one(seed, "window", ordinal) * num_starts) if num_starts > 1 else 0


def is_heldout(document_id: str, fraction: float) -> bool:
    """Tell whether a document is of the split "heldout": by a hash of its id, in any corpus."""
    return heldout_draw(document_id) < fraction


def _labels(document: Document, start: int, length: int, prefix: int) -> Labels | None:
    """The window's share of a document's `labels`, a JSON object of a made corpus' metadata:

    classes: one character a token. names: what they stand for. oracle: {index of a token:
    {"thought": text, "gain": nats}}.
    """
    raw = document.metadata.get("labels")
    if raw is None:
        return None
    try:
        assert isinstance(raw, dict)
        classes = raw["classes"][start : start + length]
        oracle = {
            int(index) - start + prefix: Oracle(str(known["thought"]), float(known["gain"]))
            for index, known in raw["oracle"].items()
            if start <= int(index) < start + length
        }
        names = dict(raw["names"])
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"document {document.id}: its labels are malformed ({error!r}); write the corpus again"
        ) from error
    if len(classes) != length:
        raise DataError(
            f"document {document.id}: {length} tokens and {len(classes)} labels; write the corpus "
            "again with the run's tokenizer"
        )
    return Labels(" " * prefix + classes, names, oracle)


def check_tokenizer(manifest: Manifest, digest: str, spec: str) -> None:
    """Raise DataError unless the corpus was prepared with the tokenizer of this digest.

    spec: what the run calls its tokenizer, for the message.
    """
    if digest != manifest.tokenizer_digest:
        raise DataError(
            f"{manifest.folder} was prepared with tokenizer {manifest.tokenizer_spec} (digest "
            f"{manifest.tokenizer_digest[:16]}), and this run uses {spec} (digest {digest[:16]}); "
            f"run `rntp data prep` again with tokenizer {spec}"
        )


def data_digest(contexts: Sequence[Context], positions: Sequence[Sequence[int]]) -> str:
    """Digest of what a step saw, from its contexts and the positions of each; see `digest_of`."""
    return digest_of(
        (context.ordinal, context.token_ids, places)
        for context, places in zip(contexts, positions, strict=True)
    )


def digest_of(pages: Iterable[tuple[int, Tensor, Sequence[int]]]) -> str:
    """16 hexadecimal digits over what a step saw: ordinals, token ids and positions, in order.

    Two runs that log the same digest saw the same data.
    """
    digest = hashlib.blake2b(digest_size=8)
    for ordinal, ids, places in pages:
        digest.update(np.array([ordinal, len(ids)], dtype="<i8").tobytes())
        digest.update(ids.numpy().astype("<i8").tobytes())
        digest.update(np.array([len(places), *places], dtype="<i8").tobytes())
    return digest.hexdigest()


def _select(manifest: Manifest, choice: Choice) -> Selection:
    """Documents of a split that are long enough, at least one."""
    found = Selection(manifest.documents, choice, cache_folder() / "selections")
    if found.num_members == 0:
        raise DataError(
            f"none of the {manifest.num_docs} documents of {manifest.folder} falls into the "
            f"{choice.split} split with data.heldout_fraction {choice.heldout_fraction}; "
            f"{'raise' if choice.split == 'heldout' else 'lower'} it, or prepare more documents"
        )
    if len(found) == 0:
        raise DataError(
            f"none of the {found.num_members} {choice.split} documents of {manifest.folder} has "
            f"the {choice.min_tokens} tokens that a context needs; the longest has "
            f"{found.longest}. Lower placement.min_prefix_tokens, placement.positions_per_doc "
            "or reward.horizon, or prepare longer documents"
        )
    return found


def _places(
    manifest: Manifest,
    choice: Choice,
    documents: Selection,
    max_documents: int,
    window: int,
    seed: int,
) -> Places:
    """What a pass goes through. window: of the pieces, or 0 for each document once."""
    if 0 < max_documents < len(documents):
        order = Order(len(documents), seed)
        numbers = np.array([documents[order[n][0]][0] for n in range(max_documents)])
        tokens = manifest.num_tokens[numbers].astype(np.int64)
        pieces = Pieces(tokens, window, choice.min_tokens) if window else None
        return Listed(numbers, pieces)
    if not window:
        return documents
    check_window(window, choice.min_tokens)
    return _select(manifest, replace(choice, window=window))
