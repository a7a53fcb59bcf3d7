"""The shard format, read and written through this file and nothing else.

A corpus is one folder:

    manifest.json          format version, the shards with their hashes, tokenizer, totals, funnel
    shard-00000.tar        plain webdataset-compatible tar: adjacent members ID.txt and ID.json,
                           and, if asked for, ID.<tokenizer digest>.npy with the text's token ids
    shard-00000.idx.npy    one row a document: where its payloads lie, their hash, its tokens

Python's tarfile takes a damaged member header for the end of the archive and loses the rest of the
shard without a word. So a tar is written here but never iterated: documents are read at the byte
ranges of the index, and every read is checked against the index's hash.
"""

import bisect
import errno
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from rntp.data.damage import Damage, DamagedDocument
from rntp.data.seen import Seen
from rntp.data.storage import DEADLINE_S, Location, Storage, open_storage
from rntp.errors import DataError
from rntp.runtime.files import sync

FORMAT = 1
MANIFEST_NAME = "manifest.json"
Content = Literal["text", "token_ids"]
_DOCS_PER_WORD = 100  # read between two words of progress
REQUIRED_METADATA = ("url", "title", "source")

# Document ids are the keys of the tar members, so webdataset's rule holds: no dot, no slash.
_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_INDEX_DTYPE = np.dtype(
    [
        ("id", "S64"),
        ("text_offset", "<i8"),
        ("text_bytes", "<i8"),
        ("meta_offset", "<i8"),
        ("meta_bytes", "<i8"),
        ("hash", "<u8"),
        ("num_tokens", "<i8"),
    ]
)
# Of shards with token ids: `ids_hash` is over metadata and ids, so that a text need not be read.
_IDS_INDEX_DTYPE = np.dtype(
    [*_INDEX_DTYPE.descr, ("ids_offset", "<i8"), ("ids_bytes", "<i8"), ("ids_hash", "<u8")]
)
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """One cleaned text. metadata: the JSON object of the shard, at least id, url, title, source."""

    id: str
    text: str
    metadata: dict[str, object]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file of the corpus by name, size and content hash (SHA-256, hexadecimal)."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What manifest.json says of one shard."""

    name: str
    bytes: int
    sha256: str
    num_docs: int
    num_tokens: int
    index: FileFacts


class Manifest:
    """A corpus that is open for reading. It holds no file open; reading is safe from any thread.

    Documents are numbered 0 … num_docs-1 in shard order.

    digest: identity of the corpus, hexadecimal SHA-256 over what describes its content; a copy
        elsewhere has the same digest. num_tokens: int64 [num_docs], tokens of each document
        without special tokens. tokenizer_spec, tokenizer_digest: the tokenizer of these counts.
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
        self.digest = _content_digest(shards, self.tokenizer_digest, self.content, self.has_ids)
        self._index = np.concatenate(
            [_load_index(storage, shard, self.has_ids) for shard in shards]
        )
        self._columns = self._index.dtype.names or ()
        self._shard_ends = list(itertools.accumulate(shard.num_docs for shard in shards))
        self.num_docs = len(self._index)
        self.num_tokens: np.ndarray = self._index["num_tokens"].astype(np.int64)
        self.num_tokens.setflags(write=False)
        self.lost: list[Damage] = []

    @classmethod
    def load(
        cls, folder: Location, *, tolerant: bool = False, deadline_s: float = DEADLINE_S
    ) -> Self:
        """Open a corpus: reads manifest and indexes, and looks at the sizes of local shards and at
        three documents of each.

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
        if version != FORMAT:
            raise DataError(
                f"{path} has format {version!r} and this program reads format {FORMAT}; install "
                "the program that wrote it, or run `rntp data prep` again"
            )
        if facts.get("content", "text") not in ("text", "token_ids"):
            raise DataError(
                f"{path} says its content is {facts['content']!r}, which this program does not "
                "know; install the program that wrote it"
            )
        try:
            shards = [_shard_facts(shard) for shard in facts["shards"]]
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
    def total_tokens(self) -> int:
        """Tokens of all documents, without special tokens."""
        return int(self.num_tokens.sum())

    @property
    def document_ids(self) -> list[str]:
        """Ids of all documents in order; from the index, no text is read."""
        return [name.decode("ascii") for name in self._index["id"].tolist()]

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
        return _document(row, "", metadata), _from_npy(ids, row["num_tokens"])

    def _row(self, index: int) -> dict[str, Any]:
        """The index' row by column, as Python's own types: quicker than a column at a time."""
        if not 0 <= index < self.num_docs:
            raise IndexError(f"document {index} of a corpus of {self.num_docs}")
        return dict(zip(self._columns, self._index[index].item(), strict=True))

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
            if _payload_hash(*payloads) == row[hash_name]:
                return payloads
            reason = "does not match its hash"
        raise DamagedDocument(self._damage(index, reason), _RESTORE)

    def _shard_of(self, index: int) -> ShardFacts:
        return self.shards[bisect.bisect_right(self._shard_ends, index)]

    def _damage(self, index: int, reason: str) -> Damage:
        name = self._index[index]["id"].decode("ascii")
        return Damage(index, name, f"{self.folder}/{self._shard_of(index).name}", reason)

    def _beyond_the_end(self, folder: Path) -> Iterator[Damage]:
        last = "ids" if self.has_ids else "meta"
        ends = self._index[f"{last}_offset"] + self._index[f"{last}_bytes"]
        for shard, end in zip(self.shards, self._shard_ends, strict=True):
            path = folder / shard.name
            found = path.stat().st_size if path.is_file() else 0
            first = end - shard.num_docs
            for index in first + np.flatnonzero(ends[first:end] > found):
                reason = f"lies beyond the end of the shard ({found} bytes of {shard.bytes})"
                yield self._damage(int(index), reason)

    def _check_swapped(self) -> None:
        """Raise DataError for a shard none of whose first, middle and last documents is as it was:
        that is another file in its place, which no budget for damage is meant for.
        """
        lost = {damage.number for damage in self.lost}
        for shard, end in zip(self.shards, self._shard_ends, strict=True):
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
        problems = []
        for shard, end in zip(self.shards, self._shard_ends, strict=True):
            path = self.folder / shard.name
            try:
                _check_size(path, shard.bytes)
                if _file_sha256(path) != shard.sha256:
                    problems.append(f"{path}: the SHA-256 is not the manifest's; {_RESTORE}")
                _load_index(self._storage, shard, self.has_ids)
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


class ShardWriter:
    """Writes a corpus, all or nothing; a context manager.

    Everything goes into a hidden folder beside `folder`. `finish` flushes it to disk, reads every
    document back, and only then gives the folder its name. Leaving the context in any other way
    removes what was written. Extra files put into `partial_folder` before `finish` are published
    with the corpus.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shard_bytes: int,
        tokenizer_digest: str,
        tokenizer_spec: str,
        prep_digest: str,
        content: Content = "text",
        with_ids: bool = False,
    ) -> None:
        """shard_bytes: a shard is closed before it grows beyond this, unless one document does.
        content: see `Manifest`. with_ids: every document comes with its token ids.

        Raises DataError when `folder` is in use by something that is not a corpus.
        """
        if with_ids and content != "text":
            raise ValueError("documents of content token_ids carry theirs in the metadata")
        self.folder = Path(folder)
        self._shard_bytes = shard_bytes
        self._tokenizer = {"spec": tokenizer_spec, "digest": tokenizer_digest}
        self._prep_digest = prep_digest
        self._content: Content = content
        self._with_ids = with_ids
        self._shards: list[ShardFacts] = []
        self._ids = Seen()
        self._rows: list[tuple[bytes | int, ...]] = []
        self._tar: tarfile.TarFile | None = None
        if _in_use(self.folder) and not (self.folder / MANIFEST_NAME).is_file():
            raise DataError(
                f"{self.folder} exists and is not a corpus; choose another output folder, or empty "
                "this one"
            )
        self.partial_folder = (
            self.folder.parent / f".{self.folder.name}.{secrets.token_hex(4)}.partial"
        )

    def __enter__(self) -> Self:
        with _disk_errors(self.folder):
            self.partial_folder.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._tar is not None and self._tar.fileobj is not None:
            self._tar.fileobj.close()
        shutil.rmtree(self.partial_folder, ignore_errors=True)

    def __contains__(self, document_id: str) -> bool:
        return document_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        document_id: str,
        text: str,
        metadata: Mapping[str, object],
        num_tokens: int,
        token_ids: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        """Append one document. `metadata` needs url, title and source, and must be JSON.

        num_tokens: tokens of `text` without special tokens. token_ids: these, of a writer that was
        made `with_ids`. Raises DataError for an id that is malformed or already written, an empty
        text, lone surrogates, or a missing metadata key.
        """
        if self._with_ids != (token_ids is not None) or (
            token_ids is not None and len(token_ids) != num_tokens
        ):
            raise ValueError(f"document {document_id}: one token id a token, or none for any")
        if not _ID_PATTERN.fullmatch(document_id):
            raise DataError(
                f"document id {document_id!r} cannot name a tar member; use 1 to 64 letters, "
                "digits, hyphens and underscores"
            )
        if document_id in self._ids:
            raise DataError(f"document id {document_id} is used twice; ids must be unique")
        missing = [key for key in REQUIRED_METADATA if key not in metadata]
        if missing:
            raise DataError(f"document {document_id}: metadata lacks {', '.join(missing)}")
        if not text or num_tokens < 1:
            raise DataError(f"document {document_id} is empty; leave it out")
        facts = {"id": document_id, **metadata}
        try:
            text_payload = text.encode("utf-8")
            meta_payload = json.dumps(facts, ensure_ascii=False, sort_keys=True).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"document {document_id} is not Unicode text: {error}") from error
        ids_payload = b"" if token_ids is None else _to_npy(token_ids)
        with _disk_errors(self.folder):
            size = len(text_payload) + len(meta_payload) + len(ids_payload)
            self._make_room(size + (6 if self._with_ids else 4) * tarfile.BLOCKSIZE)
            text_offset = self._append(f"{document_id}.txt", text_payload)
            meta_offset = self._append(f"{document_id}.json", meta_payload)
            ids: tuple[int, ...] = ()
            if self._with_ids:
                name = f"{document_id}.{self._tokenizer['digest']}.npy"
                ids_hash = _payload_hash(meta_payload, ids_payload)
                ids = (self._append(name, ids_payload), len(ids_payload), ids_hash)
        self._ids.add(document_id)
        self._rows.append(
            (
                document_id.encode("ascii"),
                text_offset,
                len(text_payload),
                meta_offset,
                len(meta_payload),
                _payload_hash(text_payload, meta_payload),
                num_tokens,
                *ids,
            )
        )

    def finish(self, funnel: Mapping[str, int]) -> Manifest:
        """Flush, read everything back, publish. Returns the opened corpus.

        An existing folder with the same corpus is left as it is. Raises DataError when there are
        no documents, when what was read back is not what was written, or when the folder exists
        with another corpus.
        """
        with _disk_errors(self.folder):
            self._close_shard()
            if not self._shards:
                raise DataError(f"no document was written to {self.folder}: the corpus is empty")
            facts = {
                "format": FORMAT,
                "digest": _content_digest(
                    self._shards, self._tokenizer["digest"], self._content, self._with_ids
                ),
                # Corpora of texts alone do not say so: theirs is the older form.
                **({} if self._content == "text" else {"content": self._content}),
                **({"token_ids": True} if self._with_ids else {}),
                "num_docs": sum(shard.num_docs for shard in self._shards),
                "num_tokens": sum(shard.num_tokens for shard in self._shards),
                "tokenizer": self._tokenizer,
                "prep_digest": self._prep_digest,
                "funnel": dict(funnel),
                "shards": [asdict(shard) for shard in self._shards],
            }
            (self.partial_folder / MANIFEST_NAME).write_text(
                json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            for path in sorted(self.partial_folder.iterdir()):
                sync(path)
            sync(self.partial_folder)
            written = Manifest.load(self.partial_folder)
            problems = written.verify()
            if problems:
                raise DataError(
                    "what was read back is not what was written; check the disk:\n"
                    + "\n".join(problems)
                )
            return self._publish(written)

    def _publish(self, written: Manifest) -> Manifest:
        if _in_use(self.folder):
            present = Manifest.load(self.folder)
            if present.digest == written.digest:
                return present
            raise DataError(
                f"{self.folder} already holds another corpus (digest {present.digest[:16]}, not "
                f"{written.digest[:16]}); choose another output folder, or delete this one"
            )
        os.rename(self.partial_folder, self.folder)
        sync(self.folder.parent)
        return Manifest.load(self.folder)

    def _make_room(self, num_bytes: int) -> None:
        # A tar ends with two empty blocks and is padded to a whole record.
        if self._tar is not None:
            end = self._tar.offset + num_bytes + 2 * tarfile.BLOCKSIZE
            if -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE > self._shard_bytes:
                self._close_shard()
        if self._tar is None:
            path = self.partial_folder / f"shard-{len(self._shards):05d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def _append(self, name: str, payload: bytes) -> int:
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # mtime, uid and gid stay 0: the same bytes every time
        member.size = len(payload)
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(member, io.BytesIO(payload))
        return offset

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        path = Path(str(self._tar.name))
        index = np.array(self._rows, dtype=_IDS_INDEX_DTYPE if self._with_ids else _INDEX_DTYPE)
        index_path = path.with_suffix(".idx.npy")
        np.save(index_path, index, allow_pickle=False)
        self._shards.append(
            ShardFacts(
                name=path.name,
                bytes=path.stat().st_size,
                sha256=_file_sha256(path),
                num_docs=len(index),
                num_tokens=int(index["num_tokens"].sum()),
                index=FileFacts(
                    index_path.name, index_path.stat().st_size, _file_sha256(index_path)
                ),
            )
        )
        self._tar, self._rows = None, []


_RESTORE = "restore the file from a copy, or run `rntp data prep` again"


def _content_digest(
    shards: list[ShardFacts], tokenizer_digest: str, content: Content, has_ids: bool
) -> str:
    facts: dict[str, Any] = {
        "format": FORMAT,
        "shards": [[shard.sha256, shard.index.sha256, shard.num_docs] for shard in shards],
        "tokenizer": tokenizer_digest,
    }
    if content != "text":
        facts["content"] = content
    if has_ids:
        facts["token_ids"] = True
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _shard_facts(raw: Mapping[str, Any]) -> ShardFacts:
    facts = ShardFacts(**{**raw, "index": FileFacts(**raw["index"])})
    for name in (facts.name, facts.index.name):
        if Path(name).name != name:
            raise DataError(f"{MANIFEST_NAME} names a file outside its folder: {name!r}")
    return facts


def _check_size(path: Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_RESTORE}") from error
    if found != num_bytes:
        raise DataError(f"{path} has {found} bytes and should have {num_bytes}; {_RESTORE}")


def _load_index(storage: Storage, shard: ShardFacts, has_ids: bool) -> np.ndarray:
    path = f"{storage.where}/{shard.index.name}"
    try:
        payload = storage.read(shard.index.name, 0, shard.index.bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_RESTORE}") from error
    if hashlib.sha256(payload).hexdigest() != shard.index.sha256:
        raise DataError(f"{path}: the SHA-256 is not the manifest's; {_RESTORE}")
    index = np.load(io.BytesIO(payload), allow_pickle=False)
    if (
        index.dtype != (_IDS_INDEX_DTYPE if has_ids else _INDEX_DTYPE)
        or len(index) != shard.num_docs
    ):
        raise DataError(f"{path} is not an index of {shard.num_docs} documents; {_RESTORE}")
    return index


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
    return Document(str(row["id"], "ascii"), text, json.loads(str(metadata, "utf-8")))


def _payload_hash(one: bytes, two: bytes) -> int:
    digest = hashlib.blake2b(one, digest_size=8)
    digest.update(two)
    return int.from_bytes(digest.digest(), "little")


def _to_npy(token_ids: Sequence[int] | np.ndarray) -> bytes:
    """A .npy file of ids, in two bytes each where they fit."""
    ids = np.asarray(token_ids, dtype=np.uint32)
    file = io.BytesIO()
    np.save(file, ids.astype("<u2" if ids.max() < 1 << 16 else "<u4"), allow_pickle=False)
    return file.getvalue()


def _from_npy(payload: bytes, count: int) -> np.ndarray:
    """What `_to_npy` wrote, of `count` ids; np.load would take three times as long as the read."""
    begin = 10 + int.from_bytes(payload[8:10], "little")
    kind = "<u2" if len(payload) - begin == 2 * count else "<u4"
    return np.frombuffer(payload, dtype=kind, count=count, offset=begin)


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _in_use(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = (
            "free some space"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "check the path and its permissions"
        )
        raise DataError(f"cannot write {folder}: {error}; {remedy}") from error
