"""What becomes of damaged shards: rntp against plain webdataset and `datasets`, on the same bytes.

    python data_prep/benchmarks/damage.py --out data_prep/benchmarks/results/damage.json

1,000 documents in one shard; every fault is done to a copy. Printed are the documents that a pass
delivers whole, and whether anybody was told of the others.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rntp.data.manifest import Manifest
from rntp.data.manifest_writer import ShardWriter
from rntp.data.stream import ContextStream
from rntp.errors import DataError

COUNT = 1000


def text(n: int) -> str:
    return " ".join(f"w{n}" for _ in range(50))


def write(folder: Path) -> Manifest:
    with ShardWriter(
        folder,
        shard_bytes=1 << 30,
        tokenizer_digest="0" * 16,
        tokenizer_spec="words",
        prep_digest="0" * 64,
    ) as writer:
        for n in range(COUNT):
            facts = {"url": str(n), "title": "", "source": "made"}
            writer.add(f"doc-{n}", text(n), facts, 50)
        return writer.finish({"pages": COUNT, "kept": COUNT})


def at(data: bytearray, name: str) -> int:
    return data.index(name.encode() + b"\0")


def flip_header(data: bytearray) -> bytes:
    data[at(data, "doc-500.txt") + 150] ^= 0x10
    return data


def flip_payload(data: bytearray) -> bytes:
    data[data.index(text(500).encode()) + 1] ^= 1
    return data


def cut_at_a_boundary(data: bytearray) -> bytes:
    return data[: at(data, "doc-500.txt")]


def cut_between_members(data: bytearray) -> bytes:
    return data[: at(data, "doc-500.json")]


def cut_in_a_member(data: bytearray) -> bytes:
    return data[: at(data, "doc-500.txt") + 700]


FAULTS: dict[str, Callable[[bytearray], bytes]] = {
    "none": bytes,
    "bit flip in a header": flip_header,
    "bit flip in a payload": flip_payload,
    "cut at a member boundary": cut_at_a_boundary,
    "cut between txt and json": cut_between_members,
    "cut inside a member": cut_in_a_member,
}


def rntp(folder: Path) -> tuple[set[str], str]:
    try:
        stream = ContextStream(
            Manifest.load(folder, tolerant=True),
            lambda text: torch.arange(len(text.split())),
            seed=0,
            context_tokens=64,
            min_document_tokens=1,
            heldout_fraction=0.0,
            split="train",
            max_damaged=0.6,
        )
        whole = {stream[n].document_id for n in range(COUNT)}
    except DataError as error:
        return set(), f"stops: {str(error)[:80]}"
    damaged = len(stream.damaged)
    return whole, f"{damaged} set aside, replaced and listed" if damaged else "nothing to tell"


def webdataset(folder: Path) -> tuple[set[str], str]:
    import webdataset

    whole: set[str] = set()
    wrong = half = 0
    try:
        for sample in webdataset.WebDataset(str(folder / "shard-00000.tar"), shardshuffle=False):
            if "txt" not in sample or "json" not in sample:
                half += 1
            elif sample["txt"].decode(errors="replace") != text(int(sample["__key__"][4:])):
                wrong += 1
            else:
                whole.add(sample["__key__"])
    except Exception as error:
        return whole, f"raises {type(error).__name__}"
    return whole, f"no error; {half} half samples, {wrong} with wrong text delivered"


def datasets(folder: Path) -> tuple[set[str], str]:
    import datasets

    whole: set[str] = set()
    wrong = half = 0
    try:
        path = str(folder / "shard-00000.tar")
        rows = datasets.load_dataset("webdataset", data_files=path, split="train", streaming=True)
        for row in rows:
            if row.get("txt") is None or row.get("json") is None:
                half += 1
            elif row["txt"] != text(int(row["__key__"][4:])):
                wrong += 1
            else:
                whole.add(row["__key__"])
    except Exception as error:
        return whole, f"raises {type(error).__name__}"
    return whole, f"no error; {half} half samples, {wrong} with wrong text delivered"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/bench-damage"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    write(arguments.work / "good")
    good = (arguments.work / "good" / "shard-00000.tar").read_bytes()
    rows: list[dict[str, Any]] = []
    print(f"{'fault':<26}{'loader':<20}{'whole':>6}{'lost':>6}  told")
    for fault, change in FAULTS.items():
        folder = arguments.work / fault.replace(" ", "-")
        shutil.copytree(arguments.work / "good", folder)
        (folder / "shard-00000.tar").write_bytes(change(bytearray(good)))
        for read in (rntp, webdataset, datasets):
            whole, told = read(folder)
            row = {
                "fault": fault,
                "loader": read.__name__,
                "whole": len(whole),
                "lost": COUNT - len(whole),
                "told": told,
            }
            rows.append(row)
            print(f"{fault:<26}{read.__name__:<20}{row['whole']:>6}{row['lost']:>6}  {told}")
    facts = {
        "command": "python data_prep/benchmarks/damage.py --out FILE",
        "versions": {n: importlib.metadata.version(n) for n in ("webdataset", "datasets")},
        "cores": os.cpu_count(),
        "documents": COUNT,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
