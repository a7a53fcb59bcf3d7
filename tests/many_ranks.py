"""Run a function on several ranks, each a process, as torchrun would; without its seconds a start.

The processes are forked from a server that has the heavy imports behind it and nothing else: a
process in which a backward has run cannot be forked.
"""

import multiprocessing
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["rntp.trainer", "rntp.report", "torch.distributed.fsdp"])


@dataclass(frozen=True)
class Outcome:
    """How a rank ended. value: what the function returned. output: stdout and stderr."""

    exit_code: int
    value: Any
    output: str


def run_ranks(
    size: int, folder: Path, work: Callable[..., Any], *args: Any, timeout_s: float = 600
) -> list[Outcome]:
    """`work(*args)` on every rank, by rank. work: of a module, so that it can be pickled.

    A rank that is still there after the deadline is killed, and its exit code is negative.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        _CONTEXT.Process(target=_rank, args=(n, size, port, folder, work, args))
        for n in range(size)
    ]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + timeout_s
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
    outcomes = []
    for n, rank in enumerate(ranks):
        if rank.is_alive():
            rank.kill()
            rank.join()
        value = folder / f"value.{n}"
        outcomes.append(
            Outcome(
                rank.exitcode or 0,
                pickle.loads(value.read_bytes()) if value.exists() else None,
                (folder / f"output.{n}").read_text(errors="replace"),
            )
        )
    return outcomes


def values(outcomes: list[Outcome]) -> list[Any]:
    """What all ranks returned; an AssertionError with their output if one did not."""
    for n, outcome in enumerate(outcomes):
        assert outcome.exit_code == 0, f"rank {n}:\n{outcome.output}"
    return [outcome.value for outcome in outcomes]


def _rank(
    rank: int, size: int, port: int, folder: Path, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    output = os.open(folder / f"output.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    code = 0
    try:
        (folder / f"value.{rank}").write_bytes(pickle.dumps(work(*args)))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
