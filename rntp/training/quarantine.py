"""Steps whose updates were dropped, and ordinals that the run has set aside, in the run folder.

quarantine/step_N.json      a step of which an update was dropped: loss or gradient was not finite
quarantine/rollback_1.json  a streak of them: what was set aside, why, and how far the run went back
quarantine/rollback_1/      the thoughts of those steps, as rollouts/ had them

A rollback's file is written before the run goes back, so a kill at any moment forgets none.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rntp.errors import CheckpointError
from rntp.run.rollout_files import rollout_files_of
from rntp.runtime.files import write_json
from rntp.types import Page

FOLDER = "quarantine"


@dataclass(frozen=True)
class Rollback:
    """first_step, last_step: of the streak. to_step: steps done after going back.

    ordinals: those of the fresh contexts. replayed: those of the first visits of contexts that had
    come back (`rntp.training.replay`) and are not to do so any more.
    """

    first_step: int
    last_step: int
    to_step: int
    ordinals: tuple[int, ...]
    replayed: tuple[int, ...]
    why: str


def note_skip(run_dir: Path, step: int, pages: Sequence[Page], facts: Mapping[str, object]) -> None:
    """Write down which contexts a step read whose updates were dropped, all or some of them.

    facts: of its updates; `moved` says whether any of them changed the weights.
    """
    path = _skip_path(run_dir, step)
    path.parent.mkdir(exist_ok=True)
    write_json(
        path,
        {
            "step": step,
            "ordinals": [page.ordinal for page in pages if page.replay_of is None],
            "replayed": [page.replay_of for page in pages if page.replay_of is not None],
            "why": "loss or gradient was not finite",
            **facts,
        },
    )


def skipped(run_dir: Path, step: int) -> tuple[list[int], list[int]]:
    """Ordinals, and ordinals of first visits, of a step that `note_skip` has noted."""
    facts = json.loads(_skip_path(run_dir, step).read_text(encoding="utf-8"))
    return facts["ordinals"], facts["replayed"]


def note_rollback(run_dir: Path, rollback: Rollback, metrics: Sequence[dict]) -> Path:
    """Write down a rollback with the metrics of its streak, and keep that streak's thoughts."""
    folder = run_dir / FOLDER
    number = len(rollbacks(run_dir)) + 1
    thoughts = folder / f"rollback_{number}"
    thoughts.mkdir(parents=True, exist_ok=True)
    for step in range(rollback.first_step, rollback.last_step + 1):
        for source in rollout_files_of(run_dir, step):
            shutil.copyfile(source, thoughts / source.name)
    path = folder / f"rollback_{number}.json"
    write_json(path, {**asdict(rollback), "metrics": list(metrics)})
    return path


def rollbacks(run_dir: Path) -> list[Rollback]:
    """Every rollback of a run, in order. Raises CheckpointError if a file cannot be read."""
    found: list[Rollback] = []
    while (path := run_dir / FOLDER / f"rollback_{len(found) + 1}.json").is_file():
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            facts.pop("metrics")
            lists = {name: tuple(facts[name]) for name in ("ordinals", "replayed")}
            found.append(Rollback(**{**facts, **lists}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); it says which ordinals the run has set aside, "
                "so restore it from a copy"
            ) from error
    return found


def _skip_path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"step_{step:08d}.json"
