"""The folder of a run: it belongs to one config and to one process at a time."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rntp.checkpoint import committed
from rntp.config import Config
from rntp.errors import CheckpointError, ConfigError
from rntp.files import write_text_atomic

CONFIG = "config.yaml"
LOCK = ".lock"


def check(config: Config, resume: str) -> None:
    """Refuse a folder that this config cannot start or go on in; creates nothing.

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
        differences = list(_differences(config))
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


def load_config(folder: Path) -> Config:
    """The resolved config of a run. Raises ConfigError if the folder holds none."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} is no run folder: it has no {CONFIG}")
    return Config.load(folder / CONFIG, [f"run.dir={json.dumps(str(folder))}"])


def _differences(config: Config) -> Iterator[str]:
    """Fields that decide what is computed and differ from the folder's config."""
    path = config.run.dir / CONFIG
    try:
        there = Config.parse(yaml.safe_load(path.read_text(encoding="utf-8")), source=str(path))
    except (ConfigError, yaml.YAMLError) as error:
        yield f"its config cannot be read by this version of rntp: {error}"
        return
    if there.digest() == config.digest():
        return
    old, new = there.identity(), config.identity()
    for section in new:
        for field in sorted({*old.get(section, {}), *new[section]}):
            was, now = _get(old, section, field), _get(new, section, field)
            if was != now:
                yield f"{section}.{field}: {was} there, {now} here"


def _get(facts: dict[str, Any], section: str, field: str) -> Any:
    return facts.get(section, {}).get(field)
