"""A mapped index for a corpus that is there, and its manifest in parts; the digest stays."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rntp.data.documents import load_index
from rntp.data.index_file import IndexWriter
from rntp.data.manifest_parts import read_shards, write_shards
from rntp.data.shard_format import MANIFEST_NAME, FileFacts, ShardFacts
from rntp.data.storage import LocalStorage
from rntp.errors import DataError
from rntp.runtime.files import write_bytes_atomic

Progress = Callable[[str, int, int], None]


def convert(folder: Path, progress: Progress | None = None) -> None:
    """Write the mapped index of a corpus, anew where it has one, and say so in its manifest.

    Runs that have the corpus open go on. Raises DataError where the corpus is damaged.
    """
    storage, path = LocalStorage(folder), folder / MANIFEST_NAME
    try:
        facts: dict[str, Any] = json.loads(path.read_bytes())
        shards = read_shards(storage, facts)
        index = write_index(
            folder, shards, has_ids=facts.get("token_ids", False), progress=progress
        )
        for name in ("shards", "parts"):
            facts.pop(name, None)
        facts |= {"index": as_facts(index), **write_shards(folder, shards)}
        write_bytes_atomic(path, manifest_bytes(facts))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error!r}); restore it from a copy") from error
    except OSError as error:
        raise DataError(f"{folder} cannot be converted: {error}; check path and rights") from error


def write_index(
    folder: Path,
    shards: Sequence[ShardFacts],
    *,
    has_ids: bool,
    progress: Progress | None = None,
) -> dict[str, FileFacts]:
    """The mapped index of the shards of a folder, from their own indexes. Returns its files."""

    def indexes() -> Iterator[np.ndarray]:
        storage = LocalStorage(folder)
        return (load_index(storage, shard, has_ids) for shard in shards)

    id_bytes = max(int(np.char.str_len(index["id"]).max()) for index in indexes())
    num_docs, done = sum(shard.num_docs for shard in shards), 0
    with IndexWriter(folder, num_docs, id_bytes, has_ids) as writer:
        for index in indexes():
            writer.add(index)
            done += len(index)
            if progress is not None:
                progress("documents", done, num_docs)
        return writer.finish()


def as_facts(index: dict[str, FileFacts]) -> dict[str, Any]:
    """Say of an index what stands in manifest.json."""
    return {name: asdict(facts) for name, facts in index.items()}


def manifest_bytes(facts: dict[str, Any]) -> bytes:
    """The content of manifest.json."""
    return (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode()
