"""A corpus, opened and read: its manifest, its index, single documents by number."""

import bisect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from rntp.data.damage import Damage, DamagedDocument
from rntp.data.documents import RESTORE as _RESTORE
from rntp.data.documents import DamagedRow, Documents, ShardIndexes, load_index
from rntp.data.index_file import REMAKE, MappedIndex
from rntp.data.manifest_parts import read_shards
from rntp.data.shard_format import (
    FORMATS,
    MANIFEST_NAME,
    Content,
    Document,
    ShardFacts,
    content_digest,
    file_facts,
    file_sha256,
    from_npy,
    payload_hash,
)
from rntp.data.storage import DEADLINE_S, Location, Storage, open_storage
from rntp.errors import DataError

_DOCS_PER_WORD = 100  # read between two words of progress
_MOST_LOOKED_AT = 64  # shards at opening


class Manifest:
    """A corpus that is open for reading. It holds no file open; reading is safe from any thread.

    Documents are numbered 0 … num_docs-1 in shard order.

    digest: identity of the corpus, hexadecimal SHA-256 over what describes its content; a copy
        elsewhere has the same digest. documents: its index, mapped from files where it is on this
        machine and has an index of its own (see `rntp.data.index_file`), and in memory otherwise.
        tokenizer_spec, tokenizer_digest: the tokenizer of these counts.
    prep_digest: identity of the preparation (settings and sources) that wrote the corpus.
    funnel: counts of pages read, kept, and rejected by reason.
    content: "text", which readers encode; or "token_ids", which the documents carry in their
        metadata (see `rntp.data.token_ids`), the text being for people.
    has_ids: beside its text, each document has the token ids that the corpus' tokenizer makes of
        it; see `read_ids`.
    lost: documents that lie beyond the end of a shard that is shorter than it was; none unless the
        corpus was loaded with `tolerant`.
    """

    def __init__(
        self, storage: Storage, shards: list[ShardFacts], facts: Mapping[str, Any]
    ) -> None:
        """Use `Manifest.load`."""
        self.folder = storage.where
        self.shards = shards
        self._storage = storage
        self.tokenizer_spec: str = facts["tokenizer"]["spec"]
        self.tokenizer_digest: str = facts["tokenizer"]["digest"]
        self.prep_digest: str = facts["prep_digest"]
        self.funnel: dict[str, int] = dict(facts["funnel"])
        self.content: Content = facts.get("content", "text")
        self.has_ids: bool = facts.get("token_ids", False)
        self.digest = content_digest(shards, self.tokenizer_digest, self.content, self.has_ids)
        self.index_files = {n: file_facts(f) for n, f in facts.get("index", {}).items()}
        self._shard_ends = list(itertools.accumulate(shard.num_docs for shard in shards))
        self.num_docs = self._shard_ends[-1]
        self.documents: Documents
        if self.index_files and isinstance(self.folder, Path):
            self.documents = MappedIndex(self.folder, self.index_files, self.num_docs)
        else:
            self.documents = ShardIndexes(storage, shards, self.has_ids)
        self.lost: list[Damage] = []

    @classmethod
    def load(
        cls, folder: Location, *, tolerant: bool = False, deadline_s: float = DEADLINE_S
    ) -> Self:
        """Open a corpus: reads the manifest, reads or maps the index, and looks at the sizes of
        local shards and, with `tolerant`, at three documents of each, or of 64 of many.

        folder: also a URL; then deadline_s is the longest that one read may take, seconds.
        tolerant: a shard of another size does not raise; see `lost`.
        Raises DataError with the remedy where something is missing, damaged or unknown.
        """
        storage = open_storage(folder, deadline_s)
        folder = storage.where
        path = f"{folder}/{MANIFEST_NAME}"
        if isinstance(folder, Path) and not folder.is_dir():
            raise DataError(f"there is no corpus folder {folder}; write one with `rntp data prep`")
        try:
            payload = storage.read_whole(MANIFEST_NAME)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} has no {MANIFEST_NAME}, so it is not a corpus; point data.source at the "
                "output folder of `rntp data prep`"
            ) from error
        try:
            facts = json.loads(payload.decode("utf-8"))
            version = facts["format"]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(folder, Path) and (folder / "config.yaml").is_file():
                raise DataError(
                    f"{folder} is the folder of a run, not a corpus; point data.source at the "
                    "output folder of `rntp data prep`, or write the run's thoughts as a corpus "
                    "with `rntp traces --shards`"
                ) from error
            raise DataError(f"{path} is damaged ({error!r}); {_RESTORE}") from error
        if version not in FORMATS:
            raise DataError(
                f"{path} has format {version!r} and this program reads formats 1 and 2; install "
                "the program that wrote it, or run `rntp data prep` again"
            )
        if facts.get("content", "text") not in ("text", "token_ids"):
            raise DataError(
                f"{path} says its content is {facts['content']!r}, which this program does not "
                "know; install the program that wrote it"
            )
        try:
            shards = read_shards(storage, facts)
            if not shards:
                raise DataError(f"{folder} holds no documents; run `rntp data prep` again")
            if isinstance(folder, Path) and not tolerant:
                for shard in shards:
                    _check_size(folder / shard.name, shard.bytes)
            manifest = cls(storage, shards, facts)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error!r}); {_RESTORE}") from error
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error}; {_RESTORE}") from error
        if manifest.digest != facts.get("digest"):
            raise DataError(f"{path} was edited: its digest is not its content's; {_RESTORE}")
        if isinstance(folder, Path):
            if tolerant:
                manifest.lost = list(manifest._beyond_the_end(folder))
            manifest._check_swapped()
        return manifest

    @property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each document without special tokens: int64 [num_docs], or int32 where the
        index is mapped."""
        return self.documents.num_tokens

    @property
    def total_tokens(self) -> int:
        """Tokens of all documents, without special tokens."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def document_ids(self) -> list[str]:
        """Ids of all documents in order; from the index, no text is read."""
        return list(self.documents.document_ids())

    @property
    def shard_names(self) -> list[str]:
        """Names of the shard files in order."""
        return [shard.name for shard in self.shards]

    def read(self, index: int) -> Document:
        """Read document `index` and check its hash; a mismatch is read once more before it counts.

        Raises DataError naming shard and document. Raises IndexError outside 0 … num_docs-1.
        """
        row = self._row(index)
        text, metadata = self._payloads(index, row, "text", "meta", "hash")
        return _document(row, str(text, "utf-8"), metadata)

    def read_ids(self, index: int) -> tuple[Document, np.ndarray]:
        """Document `index` without its text, and its token ids, uint16 or uint32 [num_tokens].

        As `read`; the text is neither read nor checked. For corpora with `has_ids`.
        """
        row = self._row(index)
        metadata, ids = self._payloads(index, row, "meta", "ids", "ids_hash")
        return _document(row, "", metadata), from_npy(ids, row["num_tokens"])

    def _row(self, index: int) -> dict[str, Any]:
        """The index' row by column, as Python's own types."""
        if not 0 <= index < self.num_docs:
            raise IndexError(f"document {index} of a corpus of {self.num_docs}")
        try:
            return self.documents.row(index)
        except DamagedRow as error:
            raise DamagedDocument(self._damage(index, str(error)), REMAKE) from error

    def _payloads(
        self, index: int, row: Mapping[str, Any], one: str, two: str, hash_name: str
    ) -> tuple[bytes, bytes]:
        """Two adjacent members that match the row's hash of both; tried twice."""
        shard = self._shard_of(index)
        reason = ""
        for _ in range(2):
            try:
                payloads = _read_payloads(self._storage, shard.name, row, one, two)
            except OSError as error:
                reason = f"cannot be read ({error.strerror or error})"
                continue
            if payload_hash(*payloads) == row[hash_name]:
                return payloads
            reason = "does not match its hash"
        raise DamagedDocument(self._damage(index, reason), _RESTORE)

    def _shard_of(self, index: int) -> ShardFacts:
        return self.shards[bisect.bisect_right(self._shard_ends, index)]

    def _damage(self, index: int, reason: str) -> Damage:
        name = self.documents.document_id(index)
        return Damage(index, name, f"{self.folder}/{self._shard_of(index).name}", reason)

    def _beyond_the_end(self, folder: Path) -> Iterator[Damage]:
        last = "ids" if self.has_ids else "meta"
        for shard, end in zip(self.shards, self._shard_ends, strict=True):
            path = folder / shard.name
            found = path.stat().st_size if path.is_file() else 0
            if found >= shard.bytes:
                continue
            first = end - shard.num_docs
            ends = self.documents.ends(first, end, last)
            for index in first + np.flatnonzero(ends > found):
                reason = f"lies beyond the end of the shard ({found} bytes of {shard.bytes})"
                yield self._damage(int(index), reason)

    def _check_swapped(self) -> None:
        """Raise DataError for a shard none of whose first, middle and last documents is as it was:
        that is another file in its place, which no budget for damage is meant for.
        """
        lost = {damage.number for damage in self.lost}
        # Of many shards some, evenly: another file in place of one of the others is found when its
        # documents are read, and counts as their damage.
        each = -(-len(self.shards) // _MOST_LOOKED_AT)
        for shard, end in list(zip(self.shards, self._shard_ends, strict=True))[::each]:
            first = end - shard.num_docs
            looked_at = {first, first + shard.num_docs // 2, end - 1}
            # Of fewer than three, a single damaged document could pass for all.
            to_judge = len(looked_at) == 3 and not lost & looked_at
            if to_judge and not any(map(self._is_whole, looked_at)):
                raise DataError(
                    f"{self.folder}/{shard.name} is another file than the one that was written: "
                    "its first, middle and last documents do not match their hashes; "
                    f"{_RESTORE}"
                )

    def _is_whole(self, index: int) -> bool:
        try:
            self.read(index)
        except DamagedDocument:
            return False
        return True

    def verify(self, progress: Callable[[str, int, int], None] | None = None) -> list[str]:
        """Hash every byte of every shard and read every document; one line a problem, or none.

        progress(what, done, total): is told as documents are read.
        Raises DataError for a URL: copy the corpus to a folder first.
        """
        if not isinstance(self.folder, Path):
            raise DataError(f"{self.folder} is a URL; copy the corpus to a folder to verify it")
        problems = self._damaged_index(self.folder)
        for shard, end in zip(self.shards, self._shard_ends, strict=True):
            path = self.folder / shard.name
            try:
                _check_size(path, shard.bytes)
                if file_sha256(path) != shard.sha256:
                    problems.append(f"{path}: the SHA-256 is not the manifest's; {_RESTORE}")
                load_index(self._storage, shard, self.has_ids)
            except (DataError, OSError) as error:
                problems.append(str(error))
                continue
            for index in range(end - shard.num_docs, end):
                if progress is not None and index % _DOCS_PER_WORD == 0:
                    progress("documents", index, self.num_docs)
                try:
                    self.read(index)
                    if self.has_ids:
                        self.read_ids(index)
                except DataError as error:
                    problems.append(str(error))
        return problems

    def _damaged_index(self, folder: Path) -> list[str]:
        return [
            f"{folder / facts.name}: the SHA-256 is not the manifest's; {REMAKE}"
            for facts in self.index_files.values()
            if file_sha256(folder / facts.name) != facts.sha256
        ]


def _check_size(path: Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_RESTORE}") from error
    if found != num_bytes:
        raise DataError(f"{path} has {found} bytes and should have {num_bytes}; {_RESTORE}")


def _read_payloads(
    storage: Storage, name: str, row: Mapping[str, Any], one: str, two: str
) -> tuple[bytes, bytes]:
    # Adjacent members: one read, with the header of the second between them.
    start = row[f"{one}_offset"]
    between = row[f"{two}_offset"] - start
    payload = storage.read(name, start, between + row[f"{two}_bytes"])
    return payload[: row[f"{one}_bytes"]], payload[between:]


def _document(row: Mapping[str, Any], text: str, metadata: bytes) -> Document:
    # Of bytes, json would guess the encoding.
    return Document(row["id"], text, json.loads(str(metadata, "utf-8")))
