"""Metrics in Weights & Biases."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rntp.config.mirrors import Wandb
from rntp.run.mirrors.protocol import Row, RunFacts
from rntp.runtime.files import write_json


class WandbRun:
    """A wandb run that a resume continues under the same id.

    The step numbers are ours: wandb drops what arrives under a number that it has seen, and counts
    from 0 in every offline start. How far it has been sent stands in wandb/sent.json: offline it
    cannot tell.
    """

    def __init__(self, facts: RunFacts, settings: Wandb, say: Callable[[str], None]) -> None:
        import wandb

        mode = settings.mode
        if mode == "online" and not os.environ.get("WANDB_API_KEY"):
            say("log.mirrors.wandb is online and WANDB_API_KEY is not set: logging offline")
            mode = "offline"
        self._sent = facts.run_dir / "wandb" / "sent.json"
        self._last = _read_sent(self._sent)
        self._run: Any = wandb.init(
            project=settings.project,
            name=facts.name,
            id=facts.id,
            resume="allow",
            dir=str(facts.run_dir),
            mode=mode,
            config=facts.config,
            # By itself wandb would store the command line, which may hold a secret.
            settings=wandb.Settings(
                console="off", silent=True, disable_code=True, x_disable_meta=True
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def last_step(self) -> int:
        return self._last

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(dict(row), step=row["step"])
        self._sent.parent.mkdir(exist_ok=True)
        write_json(self._sent, {"step": rows[-1]["step"]})

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def open_tracker(facts: RunFacts, settings: Wandb, say: Callable[[str], None]) -> WandbRun:
    """Open the run, online or offline."""
    return WandbRun(facts, settings, say)


def _read_sent(path: Path) -> int:
    try:
        return int(json.loads(path.read_bytes())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
