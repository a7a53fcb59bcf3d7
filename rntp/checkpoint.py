"""Checkpoints that are whole or absent: tensors in safetensors, facts in JSON, COMMIT.json last.

A checkpoint is written into a temporary folder, synced, hashed and renamed. A folder without its
COMMIT.json counts as damaged; with it, every file is checked against its hash before it is read.
Names that begin with a dot are of no checkpoint: what is being written, replaced or removed.
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
from rntp.faults import fault_point
from rntp.files import sync, write_json

COMMIT = "COMMIT.json"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8})")
_WRITING, _REPLACED, _REMOVED = ".tmp-", ".old-", ".del-"

Tensors = Mapping[str, Mapping[str, Tensor]]


def save(folder: Path, step: int, tensors: Tensors, state: Mapping[str, Any], keep: int) -> Path:
    """Write `step_<step>`, and `prune` to the newest `keep`.

    tensors: by file stem, by name. state: JSON facts. What lies under the name of the step, a
    damaged checkpoint that a resume passed over, is replaced. Raises CheckpointError if the disk
    does not take it; the other checkpoints are untouched.
    """
    final = folder / f"step_{step:08d}"
    staging, replaced = folder / f"{_WRITING}{final.name}", folder / f"{_REPLACED}{final.name}"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        fault_point("save.before")
        for stem, group in tensors.items():
            contiguous = {name: tensor.detach().contiguous() for name, tensor in group.items()}
            save_file(contiguous, staging / f"{stem}.safetensors")
            fault_point("save.file", files=staging)
        write_json(staging / STATE, {**state, "step": step})
        files = {}
        for path in sorted(staging.iterdir()):
            sync(path)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        fault_point("save.commit.before", files=staging)
        commit = {"step": step, "files": files}
        write_json(staging / COMMIT, {**commit, "seal": _seal(commit)})
        fault_point("save.commit.after", files=staging)
        if final.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            final.replace(replaced)
        fault_point("save.rename.before", files=staging)
        staging.replace(final)
        sync(folder)
        fault_point("save.rename.after", files=final)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder}: {error}. Free some "
            "space and start again with the same command"
        ) from error
    fault_point("prune.before")
    prune(folder, keep, glance)
    fault_point("prune.after")
    return final


def prune(folder: Path, keep: int, wrong: Callable[[Path], list[str]]) -> list[Path]:
    """Remove what is older than the newest `keep` good checkpoints, and say what went.

    wrong: what tells a good one, `problems` (reads everything) or `glance`. Damaged ones do not
    count, so that the last good one stays however many newer ones are damaged; where there is no
    good one, nothing goes.
    """
    there = [path for _, path in folders(folder)]
    good = [path for path in there if not wrong(path)]
    oldest_kept = good[-keep:][0] if good else None
    removed = there[: there.index(oldest_kept)] if oldest_kept else []
    for path in removed:
        remove(path)
    return removed


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away in one move, so that a kill leaves all of it or nothing."""
    leaving = checkpoint.with_name(f"{_REMOVED}{checkpoint.name}")
    shutil.rmtree(leaving, ignore_errors=True)
    checkpoint.replace(leaving)
    fault_point("prune.inside")
    # Network file systems may hold on to a file; the next start clears what is left.
    shutil.rmtree(leaving, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill left half-written or half-removed; call it where nobody writes.

    A checkpoint that was moved away for one which never took its place gets its name back.
    """
    if not folder.is_dir():
        return
    for path in folder.glob(f"{_REPLACED}step_*"):
        final = folder / path.name.removeprefix(_REPLACED)
        if not final.exists():
            path.replace(final)
    for prefix in (_WRITING, _REPLACED, _REMOVED):
        for path in folder.glob(f"{prefix}step_*"):
            shutil.rmtree(path)


def folders(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every folder with the name of a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    found = [(m, p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return sorted((int(m[1]), p) for m, p in found if p.is_dir())


def committed(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint with a COMMIT.json, oldest first."""
    return [(step, path) for step, path in folders(folder) if (path / COMMIT).is_file()]


def problems(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, by file; an empty list if every hash fits."""
    return _problems(checkpoint, hashes=True)


def glance(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint as far as names and sizes tell, without reading it."""
    return _problems(checkpoint, hashes=False)


def _problems(checkpoint: Path, *, hashes: bool) -> list[str]:
    try:
        commit = json.loads((checkpoint / COMMIT).read_text(encoding="utf-8"))
        seal, files = commit.pop("seal", None), dict(commit["files"])
    except FileNotFoundError:
        return [f"{COMMIT}: missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{COMMIT}: unreadable ({error})"]
    if seal is not None and seal != _seal(commit):  # those of older versions have none
        return [f"{COMMIT}: edited since the commit"]
    found = []
    for name, facts in files.items():
        path = checkpoint / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif path.stat().st_size != facts["bytes"]:
            found.append(f"{name}: {path.stat().st_size} bytes, {facts['bytes']} were committed")
        elif hashes and _sha256(path) != facts["sha256"]:
            found.append(f"{name}: its bytes have changed since the commit")
    extra = {path.name for path in checkpoint.iterdir()} - {COMMIT, *files}
    return found + [f"{name}: not among the committed files" for name in sorted(extra)]


def newest_valid(
    folder: Path, say: Callable[[str], None], before: int | None = None
) -> Path | None:
    """The newest checkpoint whose hashes all fit, or None if there never was one.

    before: only those of an earlier step than this. Damaged ones are named through `say` and passed
    over. Raises CheckpointError if there are checkpoints but none is whole: starting over would
    throw the run away.
    """
    candidates = [(step, path) for step, path in folders(folder) if before is None or step < before]
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


def has(checkpoint: Path, stem: str) -> bool:
    """There is a file of that stem."""
    return (checkpoint / f"{stem}.safetensors").is_file()


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    assert isinstance(state, dict)
    return state


def _seal(commit: Mapping[str, Any]) -> str:
    """Of the facts of a COMMIT.json, so that an edited one is told from the one written."""
    return hashlib.sha256(json.dumps(commit, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
