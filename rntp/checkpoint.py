"""Checkpoints that are whole or absent: tensors in safetensors, facts in JSON, COMMIT.json last.

A checkpoint is written into a temporary folder, synced, hashed and renamed. Without its
COMMIT.json it does not exist; with it, every file is checked against its hash before it is read.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rntp.errors import CheckpointError
from rntp.files import sync, write_json

COMMIT = "COMMIT.json"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8})")

Tensors = Mapping[str, Mapping[str, Tensor]]


def save(folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int) -> Path:
    """Write `step_<step>` and drop all but the newest `keep` committed checkpoints.

    tensors: by file stem, by name. state: JSON facts. What lies under the name of the step, a
    damaged checkpoint that a resume passed over, is replaced. Raises CheckpointError if the disk
    does not take it; the other checkpoints are untouched.
    """
    final = folder / f"step_{step:08d}"
    staging = folder / f".tmp-{final.name}"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for stem, group in tensors.items():
            contiguous = {name: tensor.detach().contiguous() for name, tensor in group.items()}
            save_file(contiguous, staging / f"{stem}.safetensors")
        write_json(staging / STATE, {**state, "step": step})
        files = {}
        for path in sorted(staging.iterdir()):
            sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        write_json(staging / COMMIT, {"step": step, "files": files})
        shutil.rmtree(final, ignore_errors=True)
        staging.replace(final)
        sync(folder)
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder}: {error}. Free some "
            "space and start again with the same command"
        ) from error
    for _, old in committed(folder)[:-keep]:
        (old / COMMIT).unlink()  # first, so that a half-removed checkpoint does not count
        shutil.rmtree(old)
    return final


def committed(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint with a COMMIT.json, oldest first."""
    if not folder.is_dir():
        return []
    found = [(m, p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return sorted((int(m[1]), p) for m, p in found if (p / COMMIT).is_file())


def problems(checkpoint: Path) -> list[str]:
    """What is wrong with a committed checkpoint, by file; an empty list if every hash fits."""
    try:
        files = json.loads((checkpoint / COMMIT).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{COMMIT}: unreadable ({error})"]
    found = []
    for name, facts in files.items():
        path = checkpoint / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif path.stat().st_size != facts["bytes"]:
            found.append(f"{name}: {path.stat().st_size} bytes, {facts['bytes']} were committed")
        elif _sha256(path) != facts["sha256"]:
            found.append(f"{name}: its bytes have changed since the commit")
    return found


def newest_valid(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose hashes all fit, or None if there never was one.

    Damaged ones are named through `say` and passed over. Raises CheckpointError if there are
    checkpoints but none is whole: starting over would throw the run away.
    """
    candidates = committed(folder)
    for _, path in reversed(candidates):
        found = problems(path)
        if not found:
            return path
        say(f"checkpoint {path.name} is damaged and passed over: {'; '.join(found)}")
    if candidates:
        raise CheckpointError(
            f"none of the {len(candidates)} checkpoints in {folder} is whole; restore one from a "
            "copy, or remove the folder to start over"
        )
    return None


def choose(folder: Path, step: int | None, say: Callable[[str], None]) -> Path:
    """That of a step, or the newest whole one. Raises CheckpointError if there is none."""
    if step is None:
        newest = newest_valid(folder, say)
        if newest is None:
            raise CheckpointError(f"there is no checkpoint in {folder}; train first")
        return newest
    found = dict(committed(folder))
    if step not in found:
        steps = ", ".join(str(n) for n in found) or "none"
        raise CheckpointError(f"{folder} has no checkpoint of step {step}; there are: {steps}")
    if wrong := problems(found[step]):
        raise CheckpointError(f"{found[step]} is damaged: {'; '.join(wrong)}")
    return found[step]


def load(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU. The caller has checked the hashes."""
    return load_file(checkpoint / f"{stem}.safetensors")


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    assert isinstance(state, dict)
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
