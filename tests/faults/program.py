"""The real program in a process of its own, without paying for its imports each time.

A fork server imports what `rntp train` imports, once; every run is a fork of it that calls the
command line's `main`. What a run does from there on is what it would do in a fresh interpreter.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "rntp.trainer",
        "rntp.report",
        "rntp.show",
        "rntp.cli",
        "transformers.models.llama.modeling_llama",
        "faults.program",
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a run ended. exit_code: negative for the signal that killed it."""

    exit_code: int
    output: str
    seconds: float


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    *,
    ranks: int = 1,
    timeout_s: float = 300,
) -> Ended:
    """Run `rntp ARGUMENTS` to its end, under torchrun where there are several ranks.

    environment: in addition to this process's. A run that outlasts `timeout_s` is killed, and
    RuntimeError shows what it said.
    """
    start = time.monotonic()
    whole = {**os.environ, **environment}
    if ranks > 1:
        code = _torchrun(arguments, whole, output, ranks, timeout_s)
    else:
        code = _fork(arguments, whole, output, timeout_s)
    text = output.read_text(errors="replace")
    if code is None:
        raise RuntimeError(f"rntp {' '.join(arguments)} had not ended after {timeout_s} s:\n{text}")
    return Ended(code, text, time.monotonic() - start)


def _fork(
    arguments: Sequence[str], environment: Mapping[str, str], output: Path, timeout_s: float
) -> int | None:
    process = _CONTEXT.Process(
        target=_child, args=(list(arguments), dict(environment), str(output))
    )
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def _child(arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = ["rntp", *arguments]
    if jump_s := float(environment.get("TEST_CLOCK_JUMP_S", "0")):
        clock = time.time
        time.time = lambda: clock() + jump_s
        socket.gethostname = lambda: "another-host"
    from rntp.cli import main

    main(arguments)


def _torchrun(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    ranks: int,
    timeout_s: float,
) -> int | None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, f"--nproc-per-node={ranks}", "-m", "rntp.cli", *arguments]
    with output.open("wb") as file:
        try:
            done = subprocess.run(
                command, env=environment, stdout=file, stderr=file, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            return None
    return done.returncode
