"""The real program in a process of its own, without paying for its imports each time.

A fork server imports what `rntp train` imports, once; every run is a fork of it that calls the
command line's `main`. What a run does from there on is what it would do in a fresh interpreter.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "rntp.trainer",
        "rntp.runtime.ranks",
        "torch.distributed.fsdp",
        "torch.distributed.launcher.api",
        "rntp.report",
        "rntp.show",
        "rntp.cli",
        "rntp.rollout.store.program",
        "transformers.models.llama.modeling_llama",
        "faults.program",
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a run ended. exit_codes: by rank, negative for the signal that killed it."""

    exit_codes: tuple[int, ...]
    output: str
    seconds: float

    @property
    def exit_code(self) -> int:
        """Of the rank that had most to say: one that was killed, or else that of all of them.

        1, which a rank says when it has lost another, counts only if nobody says anything else.
        """
        return min(self.exit_codes) if min(self.exit_codes) < 0 else max(self.exit_codes)


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    *,
    ranks: int = 1,
    timeout_s: float = 600,
) -> Ended:
    """Run `rntp ARGUMENTS` to its end, under torchrun's agent where there are several ranks.

    environment: in addition to this process's. A run that outlasts `timeout_s` is killed, and
    RuntimeError shows what it said.
    """
    start = time.monotonic()
    for rank in range(ranks):
        _code_path(output, rank).unlink(missing_ok=True)
    process = _CONTEXT.Process(
        target=_launch if ranks > 1 else _child,
        args=(list(arguments), {**os.environ, **environment}, str(output), ranks),
    )
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        # torchrun's agent takes its ranks along on SIGTERM, after 30 s at the latest.
        process.terminate()
        process.join(45)
        process.kill()
        process.join()
        text = output.read_text(errors="replace")
        raise RuntimeError(f"rntp {' '.join(arguments)} had not ended after {timeout_s} s:\n{text}")
    codes = (process.exitcode,)
    if ranks > 1:
        paths = [_code_path(output, rank) for rank in range(ranks)]
        codes = tuple(int(p.read_text()) if p.exists() else -signal.SIGKILL for p in paths)
    return Ended(codes, output.read_text(errors="replace"), time.monotonic() - start)


def start(arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> BaseProcess:
    """Start `rntp ARGUMENTS` and go on; for what works beside a run."""
    process = _CONTEXT.Process(
        target=_child, args=(list(arguments), {**os.environ, **environment}, str(output), 1)
    )
    process.start()
    return process


def _child(arguments: list[str], environment: dict[str, str], output: str, ranks: int) -> None:
    """The program, as it would run in a fresh interpreter."""
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    _redirect(output, os.O_TRUNC)
    _program(arguments)


def _program(arguments: list[str]) -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = ["rntp", *arguments]
    if jump_s := float(os.environ.get("TEST_CLOCK_JUMP_S", "0")):
        clock = time.time
        time.time = lambda: clock() + jump_s
        socket.gethostname = lambda: "another-host"
    from rntp.cli import main

    main(arguments)


def _launch(arguments: list[str], environment: dict[str, str], output: str, ranks: int) -> None:
    """What `torchrun --standalone --nproc-per-node RANKS` does, with forks for its processes."""
    os.environ.clear()
    os.environ.update(environment)
    _redirect(output, os.O_TRUNC)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="fork",
        max_restarts=0,
    )
    try:
        elastic_launch(config, _rank)(arguments, output)
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if not _code_path(Path(output), rank).exists():  # it ended without a word
                _code_path(Path(output), rank).write_text(str(failure.exitcode))
        sys.exit(1)


def _rank(arguments: list[str], output: str) -> None:
    """One rank: it leaves its exit code behind, unless it is killed.

    Also where it ends at once: the agent names one failed rank alone, and that may be another.
    """
    own, path, leave = os.getpid(), _code_path(Path(output), int(os.environ["RANK"])), os._exit

    def leave_word(code: int) -> NoReturn:
        if os.getpid() == own:  # not a child of it
            path.write_text(str(code))
        leave(code)

    os._exit = leave_word
    code = 0
    try:
        _program(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    path.write_text(str(code))
    sys.exit(code)


def _redirect(output: str, how: int) -> None:
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | how, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)


def _code_path(output: Path, rank: int) -> Path:
    return output.with_suffix(f".code.{rank}")
