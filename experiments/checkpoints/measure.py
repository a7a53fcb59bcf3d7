"""How long training stands still for a checkpoint: written at once, and behind its back.

    python experiments/checkpoints/measure.py --out experiments/checkpoints/results/stall.json

A model of SmolLM2-135M's shape with random weights, and AdamW's moments of it, 1.6 GB in float32,
saved by `rntp.training.saver.Saver` into a new folder beside `--out`. Saves take turns:

at_once      written while training waits
stall        asynchronous: what `save` and, after a piece of work in place of the next step's
             rollout, `let_change` take together
stall_worst  the same without the work: the update comes at once
tight_worst  and copies may take a quarter of a GiB, so that it waits for the disk
behind       until the asynchronous save of `stall` is on the disk
work_alone, work_beside   that piece of work (matrix products) by itself, and while a checkpoint is
             written, which takes computing and memory bandwidth from it

Then a state of `--large-gb`, made up of one tensor under many names, whose update comes at once,
with copies of 1 GiB at most: what memory the save takes.
"""

import argparse
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rntp.bench.clock import load_average
from rntp.config import Optim
from rntp.run import checkpoint
from rntp.run.log import Level, NoLog
from rntp.runtime.memory import keep_freed_memory, peak_bytes
from rntp.runtime.provenance import device_name
from rntp.runtime.ranks import SINGLE_RANK
from rntp.training.optimizer import Optimizer
from rntp.training.saver import Saver

STALL = re.compile(r"stood still for ([\d.]+) s")
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=6, help="saves of each kind")
    parser.add_argument("--large-gb", type=float, default=20.0, help="of the large state")
    arguments = parser.parse_args()
    keep_freed_memory()
    large = measure_large(arguments.large_gb, arguments.out.parent)
    found = measure(SMOLLM2_135M, arguments.repeats, arguments.out.parent) | {"large": large}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def measure(shape: LlamaConfig, repeats: int, beside: Path) -> dict[str, Any]:
    """Seconds of every save, in the order they were taken, and what follows from them."""
    model = LlamaForCausalLM(shape).to(torch.float32)
    optimizer = Optimizer(model, Optim(), dtype=torch.bfloat16, total_steps=10)
    tensors = {"weights": optimizer.masters, "moments": optimizer.moments()}
    seconds: dict[str, list[float]] = {
        name: []
        for name in (
            *("at_once", "stall", "stall_worst", "tight_worst"),
            *("behind", "work_alone", "work_beside"),
        )
    }
    load = [load_average()]
    beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".saves-", dir=beside))
    try:
        log = _Log()
        at_once, behind, tight = (
            Saver(folder, 1, SINGLE_RANK, log=log, saved=0, asynchronous=kind, copies_bytes=most)
            for kind, most in ((False, None), (True, None), (True, 1 << 28))
        )
        memory = peak_bytes()
        for first in range(1, 4 * repeats, 4):
            seconds["at_once"].append(_seconds(at_once.save, first, tensors, {}))
            seconds["work_alone"].append(_seconds(_work))
            start = time.perf_counter()
            stall = _seconds(behind.save, first + 1, tensors, {})
            seconds["work_beside"].append(_seconds(_work))
            seconds["stall"].append(stall + _seconds(behind.let_change))
            behind.wait()
            seconds["behind"].append(time.perf_counter() - start)
            for number, (name, saver) in enumerate(
                (("stall_worst", behind), ("tight_worst", tight))
            ):
                stall = _seconds(saver.save, first + 2 + number, tensors, {})
                seconds[name].append(stall + _seconds(saver.let_change))
                saver.wait()
        assert len(log.said) == 4 * repeats, log.said
        assert all(STALL.search(text) for text in log.said), log.said
        size = checkpoint.num_bytes(checkpoint.committed(folder)[-1][1])
    finally:
        shutil.rmtree(folder)
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "checkpoint_gb": size / 1e9,
        "best_s": best,
        "median_s": {name: statistics.median(values) for name, values in seconds.items()},
        "stall_share": best["stall"] / best["at_once"],
        "stall_worst_share": best["stall_worst"] / best["at_once"],
        "seconds": seconds,
        "peak_gb": {"before the first save": memory / 1e9, "in the end": peak_bytes() / 1e9},
        "load_average": {"before": load[0], "after": load_average()},
        "device": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "command": "make save-stall",
    }


def measure_large(gigabytes: float, beside: Path) -> dict[str, Any]:
    """Seconds and memory of a save whose update comes at once, with copies of 1 GiB at most."""
    one = torch.ones(1 << 26)  # 268 MB
    number = int(gigabytes * 1e9 / one.nbytes)
    tensors = {"weights": {f"layer {n}": one.view(-1) for n in range(number)}}
    beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".saves-", dir=beside))
    try:
        saver = Saver(
            folder,
            1,
            SINGLE_RANK,
            asynchronous=True,
            copies_bytes=1 << 30,
            log=_Log(),
            saved=0,
        )
        before, start = peak_bytes(), time.perf_counter()
        saver.save(1, tensors, {})
        saver.let_change()
        stall = time.perf_counter() - start
        saver.wait()
        return {
            "gb": number * one.nbytes / 1e9,
            "stall_s": stall,
            "until_on_disk_s": time.perf_counter() - start,
            "more_memory_gb": (peak_bytes() - before) / 1e9,
        }
    finally:
        shutil.rmtree(folder)


def _work(size: int = 1024, times: int = 40) -> None:
    """Less than a step of such a model takes."""
    a = torch.ones(size, size)
    for _ in range(times):
        a @ a


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


class _Log(NoLog):
    """What savers say."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str, level: Level = "info") -> None:
        self.said.append(text)


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
