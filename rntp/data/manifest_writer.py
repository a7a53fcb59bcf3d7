"""A corpus, written: shards, index and manifest, all or nothing."""

import errno
import io
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from rntp.data.convert import as_facts, manifest_bytes, write_index
from rntp.data.id_set import IdSet
from rntp.data.manifest import Manifest
from rntp.data.manifest_parts import write_shards
from rntp.data.shard_format import (
    ID_PATTERN,
    IDS_INDEX_DTYPE,
    INDEX_DTYPE,
    MANIFEST_NAME,
    REQUIRED_METADATA,
    Content,
    FileFacts,
    ShardFacts,
    content_digest,
    file_sha256,
    payload_hash,
    to_npy,
)
from rntp.errors import DataError
from rntp.runtime.files import sync

INDEX_FROM = 100_000  # documents: below, the shards' own indexes are read in an instant


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
        index_from: int = INDEX_FROM,
    ) -> None:
        """shard_bytes: a shard is closed before it grows beyond this, unless one document does.
        content: see `Manifest`. with_ids: every document comes with its token ids. index_from: a
        corpus of so many documents gets an index to map (see `rntp.data.index_file`).

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
        self._index_from = index_from
        self._shards: list[ShardFacts] = []
        self._ids = IdSet()
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
        if not ID_PATTERN.fullmatch(document_id):
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
        ids_payload = b"" if token_ids is None else to_npy(token_ids)
        with _disk_errors(self.folder):
            size = len(text_payload) + len(meta_payload) + len(ids_payload)
            self._make_room(size + (6 if self._with_ids else 4) * tarfile.BLOCKSIZE)
            text_offset = self._append(f"{document_id}.txt", text_payload)
            meta_offset = self._append(f"{document_id}.json", meta_payload)
            ids: tuple[int, ...] = ()
            if self._with_ids:
                name = f"{document_id}.{self._tokenizer['digest']}.npy"
                ids_hash = payload_hash(meta_payload, ids_payload)
                ids = (self._append(name, ids_payload), len(ids_payload), ids_hash)
        self._ids.add(document_id)
        self._rows.append(
            (
                document_id.encode("ascii"),
                text_offset,
                len(text_payload),
                meta_offset,
                len(meta_payload),
                payload_hash(text_payload, meta_payload),
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
            shards = write_shards(self.partial_folder, self._shards)
            facts = {
                "format": shards.pop("format"),
                "digest": content_digest(
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
            }
            if len(self) >= self._index_from:
                index = write_index(self.partial_folder, self._shards, has_ids=self._with_ids)
                facts["index"] = as_facts(index)
            facts |= shards
            (self.partial_folder / MANIFEST_NAME).write_bytes(manifest_bytes(facts))
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
        index = np.array(self._rows, dtype=IDS_INDEX_DTYPE if self._with_ids else INDEX_DTYPE)
        index_path = path.with_suffix(".idx.npy")
        np.save(index_path, index, allow_pickle=False)
        self._shards.append(
            ShardFacts(
                name=path.name,
                bytes=path.stat().st_size,
                sha256=file_sha256(path),
                num_docs=len(index),
                num_tokens=int(index["num_tokens"].sum()),
                index=FileFacts(
                    index_path.name, index_path.stat().st_size, file_sha256(index_path)
                ),
            )
        )
        self._tar, self._rows = None, []


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
