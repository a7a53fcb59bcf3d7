"""The folder of a run: it belongs to one config and to one process at a time."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rntp.config import Config
from rntp.config import files as config_file
from rntp.errors import CheckpointError, ConfigError
from rntp.run.checkpoint import committed
from rntp.runtime.files import write_text_atomic

Resume = Literal["auto", "never", "must"]
CONFIG = "config.yaml"
LOCK = ".lock"


def check(config: Config, resume: Resume, *, same_measures: bool = False) -> None:
    """Refuse a folder that this config cannot start or go on in; creates nothing.

    same_measures: refuse it, too, where the run there measures something else (evaluation, shadow
    schemes): what a table compares has to be measured alike.

    Raises ConfigError if it holds another run or something else, or cannot be written, and
    CheckpointError if a resume is required and there is nothing to resume.
    """
    folder = config.run.dir
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.dir {folder} is a file; choose another with --run-dir")
    here = folder
    while not here.exists():
        here = here.parent
    if not here.is_dir():
        raise ConfigError(f"run.dir {folder} cannot be made: {here} is a file")
    if not os.access(here, os.W_OK):
        raise ConfigError(f"run.dir {folder} cannot be written: no permission in {here}")
    present = {p.name for p in folder.iterdir()} - {LOCK} if folder.is_dir() else set()
    if present and CONFIG not in present:
        raise ConfigError(
            f"run.dir {folder} is not empty and is no run folder; choose another with --run-dir"
        )
    if present:
        differences = list(_differences(config, same_measures))
        if differences:
            raise ConfigError(
                f"run.dir {folder} holds a run of another config; choose another folder with "
                "--run-dir, or take these back:\n" + "\n".join(f"  {d}" for d in differences)
            )
        if resume == "never":
            raise ConfigError(
                f"run.dir {folder} already holds this run and --resume is never; choose another "
                "folder with --run-dir, or remove it"
            )
    if resume == "must" and not committed(folder / "checkpoints"):
        raise CheckpointError(
            f"--resume must: there is no checkpoint in {folder / 'checkpoints'}; start with "
            "--resume auto"
        )


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder. Raises ConfigError if one works in it."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is running in run.dir {folder}") from error
        yield


@contextmanager
def claim(config: Config) -> Iterator[Path]:
    """Create the folder, write the resolved config, and keep other processes out.

    Raises ConfigError if the folder cannot be written or another process works in it.
    """
    folder = config.run.dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise ConfigError(f"run.dir {folder} cannot be written: {error}") from error
    with lock(folder):
        try:
            write_text_atomic(folder / CONFIG, config.to_yaml())
        except OSError as error:
            raise ConfigError(f"run.dir {folder} cannot be written: {error}") from error
        yield folder


def load_config(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The resolved config of a run, with `section.field=value` on top. Raises ConfigError if the
    folder holds none."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} is no run folder: it has no {CONFIG}")
    return Config.load(folder / CONFIG, [f"run.dir={json.dumps(str(folder))}", *overrides])


def changes(config: Config) -> dict[str, dict[str, Any]]:
    """Find the fields that the folder's config, if it has one, sets to something else: was and is,
    by `section.field`. Raises ConfigError if it cannot be read."""
    if not (config.run.dir / CONFIG).is_file():
        return {}
    there = _config_there(config.run.dir)
    pairs = _pairs(there.model_dump(mode="json"), config.model_dump(mode="json"))
    return {field: {"was": was, "is": now} for field, was, now in pairs}


def _differences(config: Config, same_measures: bool) -> Iterator[str]:
    """Fields that decide what is trained, or measured, and differ from the folder's config."""
    try:
        there = _config_there(config.run.dir)
    except ConfigError as error:
        yield f"its config cannot be read by this version of rntp: {error}"
        return
    # Shares of a mixture are part of its digest, so that a resume stops at other ones all the same,
    # unless a change of the data is accepted (see `rntp.data.state.segments`).
    pairs = _pairs(there.identity(), config.identity())
    differing = [pair for pair in pairs if pair[0] != "data.weights"]
    if same_measures:
        differing += _pairs(there.measured(), config.measured())
    for field, was, now in differing:
        yield f"{field}: {was} there, {now} here"


def _config_there(folder: Path) -> Config:
    path = folder / CONFIG
    raw = config_file.parse_yaml(path.read_text(encoding="utf-8"), str(path))
    return Config.parse(raw, source=str(path))


def _pairs(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """`section.field`, old and new value, of all that differ; None stands for a missing one."""
    for section in dict.fromkeys([*new, *old]):  # one of them may leave a section out
        was, now = old.get(section, {}), new.get(section, {})
        for field in sorted({*was, *now}):
            if was.get(field) != now.get(field):
                yield f"{section}.{field}", was.get(field), now.get(field)
