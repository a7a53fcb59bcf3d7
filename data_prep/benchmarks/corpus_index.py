"""What opening a corpus costs by its number of documents: seconds, memory, lookups a second, a run.

    python data_prep/benchmarks/corpus_index.py --out data_prep/benchmarks/results/corpus_index.json

The corpora are made up: one shard of 20,000 short documents is written, and the others are hard
links to it, so that every document can be read and its hash holds. The mapped index has a row of
its own for each of them; ids are counted and draws of the split are random numbers in place of
hashes. 100 million documents take 5.5 GB of disk and some minutes to write.

Each measurement is a process of its own, after the kernel has been asked to forget the index.
Memory is what comes on top of an interpreter that has imported the loader: "own" is anonymous,
"mapped" are pages of the index that the process has looked at, which ranks of a machine share and
the kernel may take back.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rntp.data.convert import as_facts, manifest_bytes
from rntp.data.documents import load_index
from rntp.data.index_file import IndexWriter
from rntp.data.manifest import Manifest
from rntp.data.manifest_parts import write_shards
from rntp.data.manifest_writer import ShardWriter
from rntp.data.order import Order
from rntp.data.shard_format import ShardFacts, content_digest
from rntp.data.storage import LocalStorage
from rntp.data.stream import ContextStream

PER_SHARD = 20_000
WORDS = ("one page says what another page says", "and the third one knows better than both")
ID_DIGITS = 12
STREAM: dict[str, Any] = {"seed": 0, "context_tokens": 48, "min_document_tokens": 14}
RUN: dict[str, Any] = {
    "data": {"context_tokens": 48, "docs_per_step": 2, "heldout_fraction": 0.01},
    "placement": {"positions_per_doc": 2, "min_prefix_tokens": 8},
    "thought": {"thoughts_per_position": 2, "thought_tokens": 4},
    "reward": {"horizon": 4},
    "checkpoint": {"every_steps": 2},
    "evaluation": {"docs": 2},
}


def write_model(folder: Path) -> Any:
    """A tiny random model. Returns its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(sorted(_ALPHABET))}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=320, num_attention_heads=2, num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer


def _alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


_ALPHABET = _alphabet()


def write_shard(folder: Path, tokenizer: Any) -> Manifest:
    from rntp.model.tokenizer import encode, tokenizer_digest

    with ShardWriter(
        folder,
        shard_bytes=1 << 34,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="tiny",
        prep_digest="0" * 64,
    ) as writer:
        for n in range(PER_SHARD):
            text = f"{n} {WORDS[n % 2]} " * (1 + n % 3)
            facts = {"url": str(n), "title": "", "source": "made"}
            writer.add(f"doc-{n}", text, facts, len(encode(tokenizer, text)))
        return writer.finish({"pages": PER_SHARD, "kept": PER_SHARD})


def write_corpus(folder: Path, one: Manifest, documents: int, *, mapped: bool) -> dict[str, Any]:
    """`documents` of hard links to one shard. Returns seconds and bytes of the mapped index."""
    began, source = time.perf_counter(), Path(one.folder)
    folder.mkdir(parents=True)
    only, shards = one.shards[0], []
    for n in range(documents // PER_SHARD):
        name, index = f"shard-{n:05d}.tar", f"shard-{n:05d}.idx.npy"
        os.link(source / only.name, folder / name)
        os.link(source / only.index.name, folder / index)
        shards.append(
            ShardFacts(**{**_fields(only), "name": name, "index": _renamed(only.index, index)})
        )
    facts = json.loads((source / "manifest.json").read_text())
    facts = {name: facts[name] for name in ("tokenizer", "prep_digest", "funnel")}
    facts["digest"] = content_digest(shards, one.tokenizer_digest, "text", False)
    size = 0
    if mapped:
        index_files = write_index(folder, one, shards)
        facts["index"] = as_facts(index_files)
        size = sum(file.bytes for file in index_files.values())
    (folder / "manifest.json").write_bytes(
        manifest_bytes({**facts, **write_shards(folder, shards)})
    )
    return {"seconds": time.perf_counter() - began, "bytes": size}


def write_index(folder: Path, one: Manifest, shards: list[ShardFacts]) -> Any:
    rows = load_index(LocalStorage(Path(one.folder)), one.shards[0], False).copy()
    draw = np.random.default_rng(0)
    powers = 10 ** np.arange(ID_DIGITS - 1, -1, -1)
    with IndexWriter(folder, len(shards) * PER_SHARD, ID_DIGITS, False) as writer:
        for n in range(len(shards)):
            numbers = np.arange(n * PER_SHARD, (n + 1) * PER_SHARD)
            digits = (numbers[:, None] // powers % 10 + ord("0")).astype(np.uint8)
            rows["id"] = digits.view(f"S{ID_DIGITS}")[:, 0]
            writer.add(rows, draw.random(PER_SHARD))
        return writer.finish()


def _fields(shard: ShardFacts) -> dict[str, Any]:
    return {name: getattr(shard, name) for name in shard.__dataclass_fields__}


def _renamed(facts: Any, name: str) -> Any:
    return type(facts)(**{**asdict(facts), "name": name})


def forget(folder: Path) -> None:
    """Ask the kernel to drop the index from its cache."""
    for path in folder.glob("index.*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def memory() -> tuple[float, float]:
    """MB of this process: own, mapped."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def a_second(look: Callable[[int], object], at_most_s: float = 5.0) -> float:
    began = time.perf_counter()
    for n in itertools.count():
        look(n)
        spent = time.perf_counter() - began
        if n % 64 == 63 and spent > at_most_s:
            return (n + 1) / spent
    raise AssertionError


def measure(folder: Path) -> dict[str, Any]:
    """Open a corpus as a rank does, and look things up."""
    before = memory()
    began = time.perf_counter()
    manifest = Manifest.load(folder, tolerant=True)
    opened = time.perf_counter()
    streams = [
        ContextStream(
            manifest,
            lambda text: torch.zeros(len(text), dtype=torch.int64),
            heldout_fraction=0.01,
            split=split,  # type: ignore[arg-type]
            **STREAM,
        )
        for split in ("train", "heldout")
    ]
    ready = time.perf_counter()
    streams[0].read(0)
    first = time.perf_counter()
    found = {
        "load, s": opened - began,
        "streams, s": ready - opened,
        "first context, s": first - ready,
        "open, s": first - began,
        **_grown("open", before),
    }
    order = Order(manifest.num_docs, 1)
    places = streams[0]._places
    found["places a second"] = a_second(lambda n: places[order[n][0] % len(places)])
    found["rows a second"] = a_second(lambda n: manifest.documents.row(order[n][0]))
    found["contexts a second"] = a_second(streams[0].read)
    return {**found, **_grown("lookups", before)}


def _grown(what: str, before: tuple[float, float]) -> dict[str, float]:
    own, mapped = (now - then for now, then in zip(memory(), before, strict=True))
    return {f"{what}, own MB": own, f"{what}, mapped MB": mapped}


def in_a_process(folder: Path, work: Path, *, counted: bool) -> dict[str, Any]:
    """counted: the counts of the splits are in the cache."""
    cache = work / "cache"
    if not counted:
        shutil.rmtree(cache, ignore_errors=True)
    forget(folder)
    command = [sys.executable, __file__, "--measure", str(folder)]
    environment = {**os.environ, "RNTP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def a_run(folder: Path, model: Path, work: Path) -> dict[str, Any]:
    """Two steps of training over the corpus, all processes and the evaluation included."""
    shutil.rmtree(work / "run", ignore_errors=True)
    config = {**RUN, "run": {"steps": 2, "dir": str(work / "run")}, "model": {"spec": str(model)}}
    config["data"] = {**RUN["data"], "source": str(folder)}
    path = work / "run.yaml"
    path.write_text(json.dumps(config))
    environment = {**os.environ, "RNTP_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    command = [sys.executable, "-m", "rntp", "train", str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    steps = (work / "run" / "metrics.jsonl").read_text().splitlines()
    return {
        "exit": child.returncode,
        "seconds": time.perf_counter() - began,
        "peak MB": used.ru_maxrss / 1024,
        "steps": len(steps),
        "data digests": [json.loads(line)["data/digest"] for line in steps],
    }


def sizes(most: int) -> Iterator[tuple[int, bool]]:
    """Documents, and whether their index is mapped."""
    for documents in (100_000, 1_000_000):
        yield documents, False
    for documents in (100_000, 1_000_000, 10_000_000, 100_000_000):
        if documents <= most:
            yield documents, True


def table(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    head = "documents|index|first opening, s|next, s|own MB|mapped MB|places/s|rows/s|contexts/s"
    lines = [f"| {head.replace('|', ' | ')} |", f"|{' --- |' * 9}"]
    for row in rows:
        again = row["again"]
        cells = [f"{row['documents']:,}", "mapped" if row["mapped"] else "in memory"]
        cells += [f"{row[kind]['open, s']:.2f}" for kind in ("first", "again")]
        cells += [f"{again[f'open, {kind} MB']:.0f}" for kind in ("own", "mapped")]
        cells += [f"{again[f'{what} a second']:,.0f}" for what in ("places", "rows", "contexts")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--documents", type=int, default=100_000_000, help="the most (default 1e8)")
    parser.add_argument("--work", type=Path, default=Path("build/bench-index"))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    work = arguments.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    tokenizer = write_model(work / "model")
    one = write_shard(work / "one", tokenizer)
    rows = []
    for documents, mapped in sizes(arguments.documents):
        folder = work / "corpus"
        row: dict[str, Any] = {"documents": documents, "mapped": mapped}
        row["write"] = write_corpus(folder, one, documents, mapped=mapped)
        row["first"] = in_a_process(folder, work, counted=False)
        row["again"] = in_a_process(folder, work, counted=True)
        row["run"] = a_run(folder, work / "model", work)
        shutil.rmtree(folder)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    print(table(rows))
    shutil.rmtree(work)
    facts = {
        "command": "python data_prep/benchmarks/corpus_index.py --out FILE",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "documents of a shard": PER_SHARD,
        "rows": rows,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
