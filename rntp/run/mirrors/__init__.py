"""Copies of the metrics in other trackers.

The record of a run is metrics.jsonl. A mirror reads that file in a thread of its own and sends each
step once: it neither stops nor slows the run, and what a tracker missed, it is sent when it is
there again or when the run is resumed. A tracker is a file here with `open_tracker`, a row in
`TRACKERS` and its settings in `rntp.config.mirrors`.
"""

import hashlib
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rntp.config import Config
from rntp.config.section import Section
from rntp.errors import ConfigError
from rntp.run.mirrors.feeder import Feeder, Opening
from rntp.run.mirrors.protocol import RunFacts, Tracker
from rntp.runtime.provenance import redact

CLOSE_S = 15.0
"""So long the end of a run waits for its mirrors, seconds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """package: what is imported, from the extra `extra`; home: the module with `open_tracker`."""

    package: str
    extra: str
    home: str


TRACKERS = {
    "tensorboard": Kind("tensorboard", "tensorboard", "rntp.run.mirrors.tensorboard"),
    "trackio": Kind("trackio", "trackio", "rntp.run.mirrors.trackio"),
    "mlflow": Kind("mlflow", "mlflow", "rntp.run.mirrors.mlflow"),
    "wandb": Kind("wandb", "log", "rntp.run.mirrors.wandb"),
}


def check_installed(config: Config) -> None:
    """Raise ConfigError where a mirror of the config needs a package that is not installed."""
    for name in config.log.mirrors.chosen():
        kind = TRACKERS[name]
        if not _is_installed(kind.package):
            raise ConfigError(
                f"log.mirrors has {name} and the package {kind.package} is not installed; "
                f"pip install 'rntp[{kind.extra}]', or take {name} out of log.mirrors"
            )


class Mirrors:
    """The mirrors of one run. Only one process of a run has them."""

    def __init__(self, run_dir: Path, config: Config, secrets: Sequence[str]) -> None:
        """Make the mirrors; nothing is opened before `wake`. Raises ConfigError as
        `check_installed` does."""
        check_installed(config)
        facts = RunFacts(
            run_dir=run_dir,
            name=config.run.name,
            id=_run_id(run_dir, config),
            config=redact(config.model_dump(mode="json"), secrets),
        )
        self._feeders = [
            Feeder(name, _opening(name, settings, facts), run_dir / "metrics.jsonl")
            for name, settings in config.log.mirrors.chosen().items()
        ]

    def wake(self) -> None:
        """Say that metrics.jsonl has grown. Returns at once."""
        for feeder in self._feeders:
            feeder.wake()

    def notes(self) -> list[str]:
        """Return what there is to tell since the last call."""
        return [note for feeder in self._feeders for note in feeder.notes()]

    def close(self, exit_code: int) -> None:
        """Send what is left, and finish; after 15 seconds what has not arrived is told of."""
        for feeder in self._feeders:
            feeder.close(exit_code)
        until = time.monotonic() + CLOSE_S
        for feeder in self._feeders:
            feeder.wait(until - time.monotonic())


def _opening(name: str, settings: Section, facts: RunFacts) -> Opening:
    def opening(say: Callable[[str], None]) -> Tracker:
        # In the mirror's thread: some of these packages take seconds to import.
        tracker: Tracker = importlib.import_module(TRACKERS[name].home).open_tracker(
            facts, settings, say
        )
        return tracker

    return opening


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module that was made on the spot says not where it comes from
        return sys.modules.get(package) is not None


def _run_id(run_dir: Path, config: Config) -> str:
    """The same for every start of one run folder, so that a resume goes on where it ended."""
    identity = f"{run_dir.resolve()}\n{config.digest()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
