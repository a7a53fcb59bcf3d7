"""The thoughts of a run on the disk: which files there are, and reading them.

rollouts/step_00000001.jsonl          of a run on one rank
rollouts/step_00000001.rank_3.jsonl   what the fourth of many ranks had of the step
….jsonl.gz                            the same once it is old

A line is a thought; those of a step, rank by rank, are in the order of its ordinals.
"""

import gzip
import re
from pathlib import Path

from rntp.errors import ConfigError
from rntp.runtime.files import read_json_lines, write_bytes_atomic

FOLDER = "rollouts"
_NAME = re.compile(r"step_(\d+)(?:\.rank_(\d+))?\.jsonl(?:\.gz)?")
PACKED = 4.0  # times as large once it is unpacked, at least about


def rollout_path(run_dir: Path, step: int, rank: int = 0, size: int = 1) -> Path:
    """Name the file that a rank of so many writes the thoughts of a step to."""
    share = f".rank_{rank}" if size > 1 else ""
    return run_dir / FOLDER / f"step_{step:08d}{share}.jsonl"


def rollout_files(run_dir: Path) -> dict[int, list[Path]]:
    """List the files of each step, by step and rank; {} without a folder."""
    found: dict[tuple[int, int], Path] = {}
    for path in sorted((run_dir / FOLDER).glob("step_*.jsonl*")):
        if match := _NAME.fullmatch(path.name):
            # A kill may leave a file beside its packed copy: the first of them by name counts.
            found.setdefault((int(match[1]), int(match[2] or 0)), path)
    steps: dict[int, list[Path]] = {}
    for (step, _), path in sorted(found.items()):
        steps.setdefault(step, []).append(path)
    return steps


def read_rollouts(run_dir: Path, step: int) -> list[dict]:
    """Read the thoughts of one step; [] where it wrote none. Raises ConfigError when damaged."""
    try:
        files = rollout_files_of(run_dir, step)
        return [row for path in files for row in read_json_lines(path)]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def rollout_files_of(run_dir: Path, step: int) -> list[Path]:
    """List the files of one step, by rank; [] where the step wrote none."""
    return rollout_files(run_dir).get(step, [])


def unpacked_bytes(path: Path) -> float:
    """Tell how many bytes a file has once it is unpacked, about."""
    return path.stat().st_size * (PACKED if path.suffix == ".gz" else 1.0)


def forget_after(run_dir: Path, step: int) -> None:
    """Remove the thoughts of later steps, packed or not, and what a kill left half-written."""
    for path in (run_dir / FOLDER).glob(".step_*.tmp"):
        path.unlink()
    for path in (run_dir / FOLDER).glob("step_*.jsonl*"):
        if (match := _NAME.fullmatch(path.name)) and int(match[1]) > step:
            path.unlink()


def pack(path: Path) -> None:
    """Put a packed copy in place of a file; of one content it is always the same bytes."""
    write_bytes_atomic(path.with_name(f"{path.name}.gz"), gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def old_files(run_dir: Path, before: int, rank: int, size: int) -> list[Path]:
    """List the files of earlier steps that are not packed yet and that this rank is to pack."""
    found = []
    for path in sorted((run_dir / FOLDER).glob("step_*.jsonl")):
        match = _NAME.fullmatch(path.name)
        if match and int(match[1]) < before and int(match[2] or 0) % size == rank:
            found.append(path)
    return found
