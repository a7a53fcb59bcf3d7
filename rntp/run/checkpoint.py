"""Checkpoints that are whole or absent: shards of all ranks, facts in JSON, COMMIT.json last.

    step_00000010/weights/shard-00001-….safetensors   float32 masters; one file a rank at least
                  moments/…  and what else the run keeps, a folder each
                  state.json, COMMIT.json

A checkpoint is written into a temporary folder, synced, hashed and renamed. A folder without its
COMMIT.json counts as damaged; with it, every file is checked against its hash before it is read.
Names that begin with a dot are of no checkpoint: what is being written, replaced or removed.
Any number of ranks reads what any number has written; they share one file system.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file
from torch import Tensor

from rntp.errors import CheckpointError
from rntp.model.sharding import split_like
from rntp.run import checkpoint_shards as shards
from rntp.runtime.faults import fault_point
from rntp.runtime.files import sync, write_json
from rntp.runtime.ranks import SINGLE_RANK, Ranks

COMMIT = "COMMIT.json"
STATE = "state.json"
_PIECE = 1 << 24  # bytes hashed between two signs of life
FORMAT = 2  # 1 had one file for all weights and one for all moments
_NAME = re.compile(r"step_(\d{8})")
_WRITING, _REPLACED, _REMOVED = ".tmp-", ".old-", ".del-"

Tensors = Mapping[str, Mapping[str, Tensor]]
T = TypeVar("T")


def save(
    folder: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    keep: int,
    ranks: Ranks = SINGLE_RANK,
    source: Callable[[str], shards.Source] = lambda stem: shards.Source(),
) -> Path:
    """Write `step_<step>`, and `prune` to the newest `keep`; a collective.

    tensors: by stem, by name; shards (DTensor) or, alike on all ranks, whole. state: JSON facts.
    source: of a stem, where its numbers are by the time that they are written.
    What lies under the name of the step, a damaged checkpoint that a resume passed over, is
    replaced. Raises CheckpointError if the disk does not take it; the others are untouched.
    """
    final = folder / f"step_{step:08d}"
    staging = folder / f"{_WRITING}{final.name}"

    def write(stem: str) -> dict[str, dict[str, Any]]:
        table = _table(staging, shards.write(staging / stem, tensors[stem], ranks, source(stem)))
        fault_point("save.file", files=staging)
        return table

    def attempt(work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:  # of a full disk, mostly
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {folder}: {error}. Free "
                "some space and start again with the same command"
            ) from error

    try:
        ranks.decide(lambda: attempt(lambda: _make(staging, tensors)), "save")
        files: dict[str, dict[str, Any]] = {}
        for stem in tensors:  # one after the other, so that no rank begins what another has missed
            mine = sum(t.numel() * t.element_size() for t in tensors[stem].values()) // ranks.size
            of_ranks = ranks.gather(partial(attempt, partial(write, stem)), "save", mine)
            files |= {name: facts for table in of_ranks for name, facts in table.items()}
        facts = {**state, "step": step, "world_size": ranks.size}
        ranks.decide(lambda: attempt(lambda: _publish(staging, final, facts, files)), "save")
    except CheckpointError:
        if ranks.is_first:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    ranks.decide(lambda: _drop_old(folder, keep, step), "save")
    return final


def _make(staging: Path, tensors: Tensors) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    for stem in tensors:
        (staging / stem).mkdir(parents=True)
    fault_point("save.before")


def _table(staging: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Size and hash of files by their path inside the checkpoint, once they are on the disk."""
    found = {}
    for path in paths:
        sync(path)
        name = path.relative_to(staging).as_posix()
        found[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return found


def _publish(
    staging: Path, final: Path, state: dict[str, Any], files: dict[str, dict[str, Any]]
) -> None:
    """Facts, then the commit, then the name."""
    write_json(staging / STATE, state)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "step": state["step"],
        "world_size": state["world_size"],
        "files": dict(sorted({**files, **_table(staging, [staging / STATE])}.items())),
    }
    for path in staging.iterdir():
        sync(path)
    fault_point("save.commit.before", files=staging)
    write_json(staging / COMMIT, {**facts, "sha256": _digest(facts)})
    fault_point("save.commit.after", files=staging)
    replaced = final.with_name(f"{_REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.replace(replaced)
    fault_point("save.rename.before", files=staging)
    staging.replace(final)
    sync(final.parent)
    fault_point("save.rename.after", files=final)
    shutil.rmtree(replaced, ignore_errors=True)


def _drop_old(folder: Path, keep: int, step: int) -> None:
    """Checkpoints later than the one just saved, and those beyond `keep`."""
    fault_point("prune.before")
    for number, path in folders(folder):
        # The run has gone back behind it: it was damaged, or what came after was set aside.
        if number > step:
            remove(path)
    prune(folder, keep, glance)
    fault_point("prune.after")


def prune(folder: Path, keep: int, wrong: Callable[[Path], list[str]]) -> list[Path]:
    """Remove all but the newest `keep` good checkpoints, and say what went.

    wrong: what tells a good one, `problems` (reads everything) or `glance`. The last good one stays
    however many newer ones are damaged; where there is no good one, nothing goes.
    """
    there = [path for _, path in folders(folder)]
    good = [path for path in there if not wrong(path)]
    removed = [path for path in there if path not in good[-keep:]] if good else []
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
    """Return what is wrong with a checkpoint, by file; an empty list if every hash fits."""
    if found := glance(checkpoint):
        return found
    return _changed(checkpoint, list(_commit_of(checkpoint)["files"]), lambda: None)


def _changed(checkpoint: Path, names: Sequence[str], check: Callable[[], None]) -> list[str]:
    """What is wrong with some files, by their hashes. check: called often meanwhile."""
    files = _commit_of(checkpoint)["files"]
    return [
        f"{name}: its bytes have changed since the commit"
        for name in names
        if _sha256(checkpoint / name, check) != files[name]["sha256"]
    ]


def glance(checkpoint: Path) -> list[str]:
    """Return what is wrong at first sight: the commit itself, files too few, too many, too
    short."""
    if not (checkpoint / COMMIT).exists():
        return [f"{COMMIT}: missing"]
    try:
        commit = _commit_of(checkpoint)
        files = {name: int(facts["bytes"]) for name, facts in commit["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{COMMIT}: unreadable ({error})"]
    facts = {key: value for key, value in commit.items() if key != "sha256"}
    if commit.get("format", 1) > 1 and commit.get("sha256") != _digest(facts):
        return [f"{COMMIT}: it has been edited"]
    found = []
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file():
            found.append(f"{name}: missing")
        elif path.stat().st_size != size:
            found.append(f"{name}: {path.stat().st_size} bytes, {size} were committed")
    there = {p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if not p.is_dir()}
    return found + [f"{name}: not of this checkpoint" for name in sorted(there - {COMMIT, *files})]


def newest_valid(
    folder: Path,
    say: Callable[[str], None],
    before: int | None = None,
    ranks: Ranks = SINGLE_RANK,
    check: Callable[[], None] = lambda: None,
) -> Path | None:
    """Find the newest checkpoint whose hashes all fit, or None if there never was one.

    before: only those of an earlier step than this. Damaged ones are named through `say` and passed
    over. A collective: each of the ranks hashes its share of the files. check: called often
    meanwhile; it may raise. Raises CheckpointError if there are checkpoints but none is whole:
    starting over would throw the run away.
    """
    there = ranks.decide(lambda: folders(folder), "start")
    candidates = [(step, path) for step, path in there if before is None or step < before]
    for _, path in reversed(candidates):
        found = _problems_by_share(path, ranks, check)
        if not found:
            return path
        say(f"checkpoint {path.name} is damaged and passed over: {'; '.join(found)}")
    if candidates:
        error = CheckpointError(
            f"none of the {len(candidates)} checkpoints in {folder} is whole; restore one from a "
            "copy, or remove the folder to start over"
        )
        error.agreed = True  # all ranks have found the same
        raise error
    return None


def _problems_by_share(checkpoint: Path, ranks: Ranks, check: Callable[[], None]) -> list[str]:
    """As `problems`, with the files shared out among ranks by size."""

    def look() -> tuple[list[str], dict[str, int]]:
        found = glance(checkpoint)
        files = {} if found else _commit_of(checkpoint)["files"]
        return found, {name: int(facts["bytes"]) for name, facts in files.items()}

    found, sizes = ranks.decide(look, "start")
    if found:
        return found
    shares = shares_by_size(sizes, ranks.size)
    largest = max(sum(sizes[name] for name in names) for names in shares)
    of_ranks = ranks.gather(
        lambda: _changed(checkpoint, shares[ranks.rank], check), "start", largest
    )
    return sorted(line for lines in of_ranks for line in lines)


def shares_by_size(sizes: Mapping[str, int], number: int) -> list[list[str]]:
    """Deal files out so that all have about as many bytes: the largest first, to whom has least."""
    shares: list[list[str]] = [[] for _ in range(number)]
    load = [0] * number
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        shares[least].append(name)
        load[least] += sizes[name]
    return shares


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


def has(checkpoint: Path, stem: str) -> bool:
    """There are tensors of that stem."""
    return (checkpoint / stem).is_dir() or _old_file(checkpoint, stem).is_file()


def load(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of one stem in full, on the CPU. The caller has checked the hashes."""
    old = _old_file(checkpoint, stem)
    return load_file(old) if old.is_file() else shards.read(checkpoint / stem)


def load_into(checkpoint: Path, stem: str, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or shards, in place. The caller has checked the hashes.

    Raises CheckpointError if the checkpoint does not have them.
    """
    old = _old_file(checkpoint, stem)
    try:
        if not old.is_file():
            shards.read_into(checkpoint / stem, tensors)
            return
        full = load_file(old)
        for name, tensor in tensors.items():
            tensor.detach().copy_(split_like(tensor, full[name]))
    except (OSError, KeyError) as error:
        raise CheckpointError(
            f"the {stem} of {checkpoint} are not those of this run's model: {error}; take the "
            "model that it was trained with, or start a new run with --run-dir"
        ) from error


def shapes(checkpoint: Path, stem: str) -> dict[str, list[int]]:
    """Return shapes by name of the tensor, from the headers alone: nothing is loaded."""
    if _old_file(checkpoint, stem).is_file():
        return {name: list(tensor.shape) for name, tensor in load(checkpoint, stem).items()}
    return shards.shapes(checkpoint / stem)


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    assert isinstance(state, dict)
    return state


def num_bytes(checkpoint: Path, stem: str = "") -> int:
    """Add up the bytes of all its files, or of those of one stem."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return sum(
        path.stat().st_size
        for path in files
        if path.relative_to(checkpoint).as_posix().startswith(stem)
    )


def _old_file(checkpoint: Path, stem: str) -> Path:
    """Where format 1 has a stem."""
    return checkpoint / f"{stem}.safetensors"


def _commit_of(checkpoint: Path) -> dict[str, Any]:
    commit = json.loads((checkpoint / COMMIT).read_text(encoding="utf-8"))
    if not isinstance(commit, dict):
        raise ValueError("it holds no JSON object")
    return commit


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path, check: Callable[[], None] = lambda: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            check()
    return digest.hexdigest()
