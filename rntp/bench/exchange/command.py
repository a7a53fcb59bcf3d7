"""What `rntp bench exchange` does: start the ranks, collect, print, keep the JSON."""

import argparse
import json
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rntp.bench.clock import load_average
from rntp.bench.sizes import command_line
from rntp.errors import ConfigError, RanksLost
from rntp.runtime.files import write_json, write_text_atomic
from rntp.runtime.memory import size as bytes_text
from rntp.runtime.provenance import environment
from rntp.show import columns

RANKS = (1, 2, 4, 8, 16)
THOUGHTS = (256, 1024, 2048, 8192)


def exchange(arguments: argparse.Namespace) -> None:
    """Measure every number of ranks at every number of thoughts. Raises ConfigError for numbers
    that cannot be, and RanksLost where a rank ends early."""
    ranks = arguments.ranks or list(RANKS)
    thoughts = arguments.thoughts_per_step or list(THOUGHTS)
    if min([*ranks, *thoughts, arguments.repeats]) < 1:
        raise ConfigError("--ranks, --thoughts-per-step and --repeats must be 1 or more")
    before = load_average()
    points = run(ranks, thoughts, arguments.repeats)
    result = {
        **environment("cpu"),
        "bench": "exchange",
        "command": command_line(sys.argv),
        "points": points,
        "repeats": arguments.repeats,
        "load_average": {"before": before, "after": load_average()},
    }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out / "exchange.json", result)
        write_text_atomic(arguments.out / "exchange.txt", table(result) + "\n")
    print(json.dumps([result], indent=2) if arguments.json else table(result))


def run(ranks: Sequence[int], thoughts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Start the largest number of ranks once, and measure with the first so many of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rntp.bench.exchange.measure"])
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        out = Path(folder) / "points.json"
        size = max(ranks)
        started = [
            context.Process(target=_rank, args=(n, size, port, out, ranks, thoughts, repeats))
            for n in range(size)
        ]
        free.close()
        for process in started:
            process.start()
        for process in started:
            process.join()
        failed = [n for n, process in enumerate(started) if process.exitcode != 0]
        if failed:
            raise RanksLost(f"ranks {failed} of the bench ended early; their output says why")
        return json.loads(out.read_text())


def table(result: dict[str, Any]) -> str:
    """Lay the points out for people, a row each."""
    rows = [["ranks", "thoughts", "objects", "packed", "rank 0", "share", "objects", "packed"]]
    for point in result["points"]:
        old, new = point["objects"], point["packed"]
        share = f"{new['bytes'] / old['bytes']:.1%}" if old["bytes"] else "–"
        rows.append(
            [
                str(point["ranks"]),
                str(point["thoughts"]),
                *(bytes_text(n) for n in (old["bytes"], new["bytes"], new["bytes_rank_0"])),
                share,
                *(f"{1e3 * way['seconds']:.1f} ms" for way in (old, new)),
            ]
        )
    return (
        f"{result['command']}\n"
        "Bytes that a rank takes in a step, and seconds of its exchange, of the slowest rank. "
        "thoughts: of the step, all ranks. rank 0: has the token ids besides. objects: every "
        f"rank's to all.\n\n{columns(rows)}"
    )


def _rank(
    rank: int,
    size: int,
    port: int,
    out: Path,
    ranks: Sequence[int],
    thoughts: Sequence[int],
    repeats: int,
) -> None:
    import torch
    import torch.distributed as dist

    from rntp.bench.exchange.measure import measure

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    points = measure(ranks, thoughts, repeats)
    if rank == 0:
        write_json(out, points)
    dist.barrier()
    dist.destroy_process_group()
