"""metrics.jsonl mirrored to wandb. The record is the file: nothing here may stop a run."""

import hashlib
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.runtime.provenance import redact


def import_wandb(config: Config) -> Any:
    """The module, or None where the config does not ask for it. Raises ConfigError if missing."""
    if config.log.wandb == "off":
        return None
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ConfigError(
            f"log.wandb is {config.log.wandb} and wandb is not installed; "
            "pip install 'rntp[log]', or set log.wandb to off"
        ) from error


class WandbMirror:
    """Sends each step's metrics to wandb; after the first trouble it warns and sends no more.

    wandb drops what arrives under a step number that it has seen, so steps replayed after a resume
    are told apart by a step metric of our own.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        secrets: Sequence[str],
        say: Callable[[str, str], None],
    ) -> None:
        """say: prints (text, level). Raises ConfigError when wandb is not installed."""
        self._say = say
        self._run: Any = None
        wandb = import_wandb(config)
        mode = config.log.wandb
        if mode == "online" and not os.environ.get("WANDB_API_KEY"):
            say("log.wandb is online and WANDB_API_KEY is not set: logging offline", "warning")
            mode = "offline"
        try:
            self._run = wandb.init(
                project=config.log.wandb_project,
                name=config.run.name,
                id=_run_id(run_dir, config),
                resume="allow",
                dir=str(run_dir),
                mode=mode,
                config=redact(config.model_dump(mode="json"), secrets),
                # By itself wandb would store the command line, which may hold a secret.
                settings=wandb.Settings(
                    console="off", silent=True, disable_code=True, x_disable_meta=True
                ),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # whatever wandb raises, the run goes on
            self._give_up(error)

    def log(self, metrics: Mapping[str, object]) -> None:
        """Send the metrics of one step; they hold `step`."""
        if self._run is None:
            return
        try:
            self._run.log(dict(metrics))
        except Exception as error:
            self._give_up(error)

    def close(self, exit_code: int) -> None:
        """Finish the wandb run."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._say(
            f"wandb failed and gets no more metrics of this run ({type(error).__name__}: {error}); "
            "metrics.jsonl is complete",
            "warning",
        )


def _run_id(run_dir: Path, config: Config) -> str:
    """The same for every start of one run folder, so that a resume continues the wandb run."""
    identity = f"{run_dir.resolve()}\n{config.digest()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
