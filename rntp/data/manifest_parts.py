"""The shards that a manifest names: in it, or of more than a thousand in parts beside it.

A part is a JSON file `manifest-00000.json` of a thousand shards; the manifest keeps its size and
SHA-256. No file grows with the number of documents.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rntp.data.shard_format import MANIFEST_NAME, FileFacts, ShardFacts, file_facts, shard_facts
from rntp.data.storage import Storage
from rntp.errors import DataError
from rntp.runtime.files import write_bytes_atomic

SHARDS_PER_PART = 1000


def write_shards(folder: Path, shards: Sequence[ShardFacts]) -> dict[str, Any]:
    """What manifest.json says of the shards; writes the parts where there are any."""
    if len(shards) <= SHARDS_PER_PART:
        return {"format": 1, "shards": [asdict(shard) for shard in shards]}
    parts = []
    for number, first in enumerate(range(0, len(shards), SHARDS_PER_PART)):
        some = shards[first : first + SHARDS_PER_PART]
        payload = json.dumps({"shards": [asdict(shard) for shard in some]}, indent=1).encode()
        name = f"{Path(MANIFEST_NAME).stem}-{number:05d}.json"
        write_bytes_atomic(folder / name, payload)
        parts.append(FileFacts(name, len(payload), hashlib.sha256(payload).hexdigest()))
    return {"format": 2, "parts": [asdict(part) for part in parts]}


def read_shards(storage: Storage, facts: Mapping[str, Any]) -> list[ShardFacts]:
    """The shards of a manifest. Raises DataError for a part that is not as it was written, KeyError
    and TypeError for a malformed manifest, OSError for a part that cannot be read."""
    if "parts" not in facts:
        return [shard_facts(shard) for shard in facts["shards"]]
    shards: list[ShardFacts] = []
    for part in map(file_facts, facts["parts"]):
        payload = storage.read(part.name, 0, part.bytes)
        if hashlib.sha256(payload).hexdigest() != part.sha256:
            raise DataError(
                f"{storage.where}/{part.name}: the SHA-256 is not the manifest's; restore the file "
                "from a copy, or run `rntp data prep` again"
            )
        shards += [shard_facts(shard) for shard in json.loads(payload)["shards"]]
    return shards
