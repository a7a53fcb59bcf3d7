"""Named places in the loop at which a test makes the program fail: off unless the environment arms.

    RNTP_FAULT="save.file#2=kill"                    the second time that point is reached, kill -9
    RNTP_FAULT="rollout@1=hang"                      on rank 1 only
    RNTP_FAULT="forward#3-5=nan;save.before=enospc"  a streak of three; two faults in one run
    RNTP_FAULT="save.rename.after=flip:weights*"     a bit of a file that the point is about

A fault that fires first writes a line to the file that RNTP_FAULT_PROOF names, so that a test knows
that it has tested something. Off, a point costs a look at an empty dict.
"""

import ctypes
import difflib
import errno
import json
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from torch import Tensor

from rntp.errors import ConfigError
from rntp.runtime.signals import SAME_REQUEST_S

ARMED_BY = "RNTP_FAULT"
PROOF_IN = "RNTP_FAULT_PROOF"


@dataclass(frozen=True)
class Point:
    """where: what has just happened, or is about to. has: what an action there can work on."""

    where: str
    has: Literal["nothing", "tensors", "files"] = "nothing"


POINTS = {
    "start": Point("the config is read, the model is not"),
    "claimed": Point("the run folder is this process's, nothing is restored"),
    "restored": Point("the checkpoint is taken over, the logs are rewound to it"),
    "rollout": Point("the thoughts of a step are sampled"),
    "forward": Point("a microbatch has its loss, no gradient yet", "tensors"),
    "gradient": Point("the gradient of a microbatch's loss, 1, is about to go back", "tensors"),
    "backward": Point("a microbatch has added its gradients"),
    "update.before": Point("all gradients of a step are there"),
    "update.after": Point("weights and moments have moved"),
    "metrics.before": Point("before a step's line in metrics.jsonl"),
    "rollouts.before": Point("before a step's rollouts, behind the training"),
    "step.end": Point("the rollouts of a step are on their way to the disk"),
    "evaluate.inside": Point("before each batch of an evaluation"),
    "evaluate.written": Point("the evaluation's file has its name"),
    "save.before": Point("before a checkpoint's first file"),
    "save.file": Point("after each file of a checkpoint", "files"),
    "save.commit.before": Point("all files are synced and hashed", "files"),
    "save.commit.after": Point("COMMIT.json is written, the folder has no name yet", "files"),
    "save.rename.before": Point("what lay under the name is moved away", "files"),
    "save.rename.after": Point("the checkpoint has its name", "files"),
    "prune.before": Point("the new checkpoint is durable, the old ones are still there"),
    "prune.inside": Point("an old checkpoint has lost its name, its files are there"),
    "prune.after": Point("the old checkpoint is gone"),
}

SAMPLER_POINTS = {
    "sampler.loaded": Point("a sampler has taken new weights, and not looked at them", "tensors"),
    "sampler.leased": Point("a sampler has taken a part of a step"),
    "sampler.inside": Point("a sampler draws a token, or prefills a batch"),
    "sampler.sampled": Point("a sampler has rollouts, the store has not"),
    "sampler.staged": Point("a sampler's file is ready to be put into the store", "files"),
    "sampler.put": Point("the store has a sampler's rollouts"),
    "store.put": Point("before a file is written to a store"),
    "weights.put": Point("a version's files are in the store, its manifest is not", "files"),
}
"""Points of samplers and their store, which a run without them does not reach."""

_FILE_ACTIONS = ("truncate", "flip", "zero")
_TENSOR_ACTIONS = ("nan", "inf")
_ALL = POINTS | SAMPLER_POINTS
ACTIONS = {
    "kill": "SIGKILL to the own process",
    "raise": "an error that nothing expects",
    "slow": "sleep for a second",
    "hang": "sleep for ever",
    "stuck": "sleep for ever in C code that keeps the interpreter's lock",
    "sigterm": "SIGTERM to the own process",
    "sigint": "SIGINT to the own process",
    "insist": "SIGTERM to the own process, so late that it is another request",
    "enospc": "OSError: no space left on device",
    "note": "nothing but the line of proof",
    "nan": "fill the tensors with NaN",
    "inf": "fill the tensors with infinity",
    "truncate": "truncate:GLOB cuts a file in half",
    "flip": "flip:GLOB flips a bit in the middle of a file",
    "zero": "zero:GLOB zeroes 4 KiB in the middle of a file",
}

_SPEC = re.compile(
    r"(?P<point>[^@#=]+)(@(?P<rank>\d+))?(#(?P<first>\d+)(-(?P<last>\d+))?)?"
    r"=(?P<action>\w+)(:(?P<glob>.+))?"
)


class InjectedFault(RuntimeError):
    """What the action `raise` raises: no handler of the program knows it."""


@dataclass(frozen=True)
class Fault:
    """One armed fault. first, last: the times that the point is reached at which it fires."""

    point: str
    action: str
    glob: str = ""
    rank: int | None = None
    first: int = 1
    last: int = 1


_armed: dict[str, list[Fault]] = {}
_reached: dict[str, int] = {}


def parse(text: str) -> list[Fault]:
    """The faults of a specification; see the module. Raises ConfigError that says what is wrong."""
    return [_parse_one(part.strip()) for part in text.split(";") if part.strip()]


def arm(environment: Mapping[str, str]) -> list[Fault]:
    """Arm what RNTP_FAULT says, count from zero, and return the faults: none without it.

    Raises ConfigError for a specification that cannot be meant.
    """
    _armed.clear()
    _reached.clear()
    found = parse(environment.get(ARMED_BY, ""))
    for fault in found:
        _armed.setdefault(fault.point, []).append(fault)
    return found


def fault_point(name: str, *tensors: Tensor | None, files: Path | None = None) -> None:
    """The place `name` of the catalogue is reached.

    tensors: filled in place by `nan` and `inf`. files: the folder in which a GLOB looks.
    """
    if not _armed:
        return
    assert name in _ALL, f"{name} is not in the catalogue of rntp.runtime.faults"
    nth = _reached[name] = _reached.get(name, 0) + 1
    rank = int(os.environ.get("RANK", "0"))
    for fault in _armed.get(name, ()):
        if fault.first <= nth <= fault.last and fault.rank in (None, rank):
            _fire(fault, rank, nth, tensors, files)


def _parse_one(text: str) -> Fault:
    match = _SPEC.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{ARMED_BY}: {text!r} is not point[@rank][#nth]=action; e.g. save.file#2=kill"
        )
    point, action, glob = match["point"], match["action"], match["glob"] or ""
    _known(point, _ALL, "fault point")
    _known(action, ACTIONS, "action")
    needs = "tensors" if action in _TENSOR_ACTIONS else "files"
    if action in _TENSOR_ACTIONS + _FILE_ACTIONS and _ALL[point].has != needs:
        able = ", ".join(name for name, facts in _ALL.items() if facts.has == needs)
        raise ConfigError(f"{ARMED_BY}: {action} works on {needs}, and only {able} have any")
    if (action in _FILE_ACTIONS) != bool(glob):
        example = f"{point}={action}" + ("" if glob else ":*.safetensors")
        raise ConfigError(f"{ARMED_BY}: {text!r}: write {example}")
    first = int(match["first"] or 1)
    last = int(match["last"] or first)
    if not 1 <= first <= last:
        raise ConfigError(f"{ARMED_BY}: {text!r}: times count from 1, the earlier first")
    rank = None if match["rank"] is None else int(match["rank"])
    return Fault(point, action, glob, rank, first, last)


def _known(name: str, catalogue: Mapping[str, object], kind: str) -> None:
    if name not in catalogue:
        near = difflib.get_close_matches(name, catalogue, n=3, cutoff=0.4) or list(catalogue)
        raise ConfigError(f"{ARMED_BY}: no {kind} {name!r}; did you mean {' or '.join(near)}?")


def _fire(
    fault: Fault, rank: int, nth: int, tensors: tuple[Tensor | None, ...], files: Path | None
) -> None:
    _prove(fault, rank, nth)
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action in ("sigterm", "sigint"):
        os.kill(os.getpid(), getattr(signal, fault.action.upper()))
    elif fault.action == "insist":
        time.sleep(SAME_REQUEST_S)
        os.kill(os.getpid(), signal.SIGTERM)
    elif fault.action == "raise":
        raise InjectedFault(f"injected at {fault.point}")
    elif fault.action == "enospc":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"injected at {fault.point}")
    elif fault.action == "slow":
        time.sleep(1.0)
    elif fault.action in ("hang", "stuck"):
        _sleep_for_ever(keeps_the_lock=fault.action == "stuck")
    elif fault.action in _TENSOR_ACTIONS:
        for tensor in tensors:
            assert tensor is not None, f"{fault.point} has no tensor to fill"
            tensor.data.fill_(float(fault.action))
    elif fault.action in _FILE_ACTIONS:
        assert files is not None
        found = sorted(files.glob(fault.glob))
        assert found, f"no file fits {fault.glob} in {files}"
        for path in found:
            damage(path, fault.action)


def damage(path: Path, how: str) -> None:
    """Truncate a file to its half, flip a bit or zero 4 KiB in its middle; in place."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "truncate":
            file.truncate(size // 2)
        elif how == "flip":
            file.seek(size // 2)
            (byte,) = file.read(1)
            file.seek(size // 2)
            file.write(bytes([byte ^ 0x10]))
        else:
            assert how == "zero"
            file.seek(max(0, size // 2 - 2048))
            file.write(bytes(min(4096, size)))


def _sleep_for_ever(*, keeps_the_lock: bool) -> NoReturn:
    while True:
        if keeps_the_lock:
            ctypes.PyDLL(None).sleep(3600)
        else:
            time.sleep(3600)


def _prove(fault: Fault, rank: int, nth: int) -> None:
    """Before the deed: a line that survives kill -9, and a power cut as well."""
    path = os.environ.get(PROOF_IN)
    if not path:
        return
    facts = {"point": fault.point, "action": fault.action, "rank": rank, "nth": nth}
    line = json.dumps({**facts, "pid": os.getpid()}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
