"""The shard format: what stands in a manifest, in an index and in a shard.

A corpus is one folder:

    manifest.json          format version, the shards with their hashes, tokenizer, totals, funnel
    manifest-00000.json    of many shards, the first thousand, and so on (see `manifest_parts`)
    shard-00000.tar        plain webdataset-compatible tar: adjacent members ID.txt and ID.json,
                           and, if asked for, ID.<tokenizer digest>.npy with the text's token ids
    shard-00000.idx.npy    one row a document: where its payloads lie, their hash, its tokens
    index.*.npy            of many documents, the same of all, to be mapped (see `index_file`)

Python's tarfile takes a damaged member header for the end of the archive and loses the rest of the
shard without a word. So a tar is written here but never iterated: documents are read at the byte
ranges of the index, and every read is checked against the index's hash.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rntp.errors import DataError

FORMATS = (1, 2)  # 2: the shards stand in parts beside the manifest
MANIFEST_NAME = "manifest.json"
Content = Literal["text", "token_ids"]
REQUIRED_METADATA = ("url", "title", "source")

# Document ids are the keys of the tar members, so webdataset's rule holds: no dot, no slash.
ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
INDEX_DTYPE = np.dtype(
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
IDS_INDEX_DTYPE = np.dtype(
    [*INDEX_DTYPE.descr, ("ids_offset", "<i8"), ("ids_bytes", "<i8"), ("ids_hash", "<u8")]
)
HASH_CHUNK_BYTES = 1 << 20


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


def content_digest(
    shards: list[ShardFacts], tokenizer_digest: str, content: Content, has_ids: bool
) -> str:
    facts: dict[str, Any] = {
        "format": 1,  # of what is hashed: the same content has one digest in any format
        "shards": [[shard.sha256, shard.index.sha256, shard.num_docs] for shard in shards],
        "tokenizer": tokenizer_digest,
    }
    if content != "text":
        facts["content"] = content
    if has_ids:
        facts["token_ids"] = True
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def shard_facts(raw: Mapping[str, Any]) -> ShardFacts:
    facts = ShardFacts(**{**raw, "index": file_facts(raw["index"])})
    _check_inside(facts.name)
    return facts


def file_facts(raw: Mapping[str, Any]) -> FileFacts:
    """Return what a manifest says of a file. Raises DataError for one outside its folder."""
    facts = FileFacts(**raw)
    _check_inside(facts.name)
    return facts


def _check_inside(name: str) -> None:
    if Path(name).name != name:
        raise DataError(f"{MANIFEST_NAME} names a file outside its folder: {name!r}")


def payload_hash(one: bytes, two: bytes) -> int:
    digest = hashlib.blake2b(one, digest_size=8)
    digest.update(two)
    return int.from_bytes(digest.digest(), "little")


def to_npy(token_ids: Sequence[int] | np.ndarray) -> bytes:
    """A .npy file of ids, in two bytes each where they fit."""
    ids = np.asarray(token_ids, dtype=np.uint32)
    file = io.BytesIO()
    np.save(file, ids.astype("<u2" if ids.max() < 1 << 16 else "<u4"), allow_pickle=False)
    return file.getvalue()


def from_npy(payload: bytes, count: int) -> np.ndarray:
    """Return what `to_npy` wrote, of `count` ids; np.load would take three times as long as the
    read."""
    begin = 10 + int.from_bytes(payload[8:10], "little")
    kind = "<u2" if len(payload) - begin == 2 * count else "<u4"
    return np.frombuffer(payload, dtype=kind, count=count, offset=begin)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
