"""Going back to a checkpoint from before a streak of non-finite steps, without their ordinals.

PaLM's remedy for a loss that is lost (2204.02311): earlier weights, other data. What is set aside
is a property of the run from then on: the stream of every later step is the stream without it.
"""

from collections.abc import Callable
from pathlib import Path

from rntp.config import Config
from rntp.errors import Diverged
from rntp.run import checkpoint
from rntp.run.log import read_metrics
from rntp.training import quarantine
from rntp.training.quarantine import Rollback


def exclude_streak(config: Config, step: int, streak: int, say: Callable[[str], None]) -> None:
    """Write down that the `streak` steps up to `step` are set aside; a restore then goes back.

    Raises Diverged if no whole checkpoint lies before the
    streak, or if the run has gone back `rollbacks` of `run.on_trouble` times.
    """
    folder = config.run.dir
    first = step - streak + 1
    newest = checkpoint.newest_valid(folder / "checkpoints", say, before=first)
    times = len(quarantine.rollbacks(folder))
    if newest is None or times >= config.run.on_trouble.get("rollbacks"):
        reason = "there is no checkpoint from before them"
        if newest is not None:
            reason = f"the run has gone back {times} times (rollbacks of run.on_trouble)"
        raise Diverged(
            f"{streak} steps in a row were not finite, and {reason}; lower optim.lr or look at "
            f"the rollouts of the last steps in {folder / 'rollouts'}"
        )
    lost = [quarantine.skipped(folder, n) for n in range(first, step + 1)]
    ordinals = tuple(n for fresh, _ in lost for n in fresh)
    replayed = tuple(sorted({n for _, again in lost for n in again}))
    to_step = int(checkpoint.load_state(newest)["step"])
    why = f"loss or gradient was not finite in {streak} steps in a row"
    path = quarantine.note_rollback(
        folder,
        Rollback(first, step, to_step, ordinals, replayed, why),
        [row for row in read_metrics(folder) if row["step"] >= first],
    )
    say(
        f"{streak} steps in a row were not finite: going back to step {to_step} without ordinals "
        f"{ordinals[0]} … {ordinals[-1]}, see {path}"
    )


def load_rollbacks(folder: Path) -> tuple[set[int], set[int]]:
    """The ordinals that rollbacks of this run folder have set aside: of fresh contexts, and of the
    first visits of those that had come back.

    Removes checkpoints of the lines that they gave up: those of later steps than a rollback went
    back to, which do not know what it set aside.
    """
    rollbacks = quarantine.rollbacks(folder)
    for step, path in checkpoint.committed(folder / "checkpoints"):
        behind = [rollback for rollback in rollbacks if rollback.to_step < step]
        if not behind or checkpoint.problems(path):
            continue
        known = set(checkpoint.load_state(path).get("set_aside", []))
        if not all(known.issuperset(rollback.ordinals) for rollback in behind):
            checkpoint.remove(path)
    fresh = {ordinal for rollback in rollbacks for ordinal in rollback.ordinals}
    return fresh, {ordinal for rollback in rollbacks for ordinal in rollback.replayed}
