"""The fault matrix on many ranks: every point on each of two, and what only many can get wrong.

Of the three contexts of a step rank 0 has one and rank 1 two; both evaluate one page each.
"""

import json
from collections import Counter
from collections.abc import Callable

from faults.cases import (
    WATCHED,
    one_step_not_finite,
    streak_rolls_back,
    streak_then_killed,
    streak_without_rollbacks,
)
from faults.lab import ANYWHERE, Case, Lab, Row, comparable, interrupt, ordinals, resumed

from rntp.log import read_rollouts

RANKS = 2

# Point and time → the step that the second start goes on from. Where a microbatch is meant, that of
# step 3 has another number on each rank.
ON_EACH = {
    "start": 0,
    "claimed": 0,
    "restored": 0,
    "rollout#3": 2,
    "forward": 2,
    "gradient": 2,
    "backward": 2,
    "update.before#3": 2,
    "update.after#3": 2,
    "step.end#4": 2,
    "evaluate.inside": 0,
    "evaluate.inside#3": 4,
    "save.file#4": 2,
    "save.file#5": 2,
    "save.file#6": 2,
}
MICROBATCH_OF_STEP_3 = (3, 6)
ON_FIRST = {
    "metrics.before#3": 2,
    "rollouts.before#3": 2,
    "evaluate.written#2": 4,
    "save.before#2": 2,
    "save.commit.before#2": 2,
    "save.commit.after#2": 2,
    "save.rename.before#2": 2,
    "save.rename.after#2": 4,
    "prune.before#3": 6,
    "prune.inside": 6,
    "prune.after#3": 6,
}
BEHIND = ("checkpoint.asynchronous=true",)


def _at(point: str, rank: int) -> str:
    name, sharp, nth = point.partition("#")
    if name in ("forward", "gradient", "backward"):
        sharp, nth = "#", str(MICROBATCH_OF_STEP_3[rank])
    return f"{name}@{rank}{sharp}{nth}"


KILLS = [
    *(Case(f"{_at(p, rank)}=kill", -9, step) for rank in (0, 1) for p, step in ON_EACH.items()),
    *(Case(f"{_at(point, 0)}=kill", -9, step) for point, step in ON_FIRST.items()),
]

ON_ONE = [
    Case("start@1=sigterm", 5, 0, "stopped by SIGTERM"),
    Case("rollout@1#3=sigterm", 5, 2, "the same command resumes"),
    Case("forward@1#5=sigterm", 5, 2, "the same command resumes"),
    Case("update.after@0#3=sigterm", 5, 3, "the same command resumes"),
    Case("update.after@1#3=sigint", 5, 3, "the same command resumes"),
    Case("save.file@1#5=sigterm", 5, 4, "the same command resumes"),
    Case("evaluate.inside@1#3=sigterm", 5, 4, "the same command resumes"),
    Case("update.before@1#3=sigterm;update.after@1#3=insist", 143, 2),
    Case("forward@1#5=raise", 1, 2, "injected at forward"),
    Case("save.file@1#5=enospc", 0, None, "NOT SAVED"),
    Case("save.file@1#7-9=enospc", 4, 4, "No space left on device"),
    Case("rollout@1#3=hang", -9, 2, "rank 1 hangs in phase rollout of step 3", WATCHED, "rank 0 h"),
    Case("forward@0#3=stuck", -9, 2, "rank 0 hangs in phase forward", WATCHED, "rank 1 h"),
    Case("save.file@1#5=hang", -9, 2, "rank 1 hangs in phase save of step 4", WATCHED),
]

# What a thread writes while the training goes on.
ASYNCHRONOUS = [
    Case("save.file@0#5=kill", -9, 2, "", BEHIND),
    Case("save.file@1#4=kill", -9, 2, "", BEHIND),
    Case("save.commit.before@0#2=kill", -9, 2, "", BEHIND),
    Case("save.commit.after@0#2=kill", -9, 2, "", BEHIND),
    Case("save.file@1#5=sigterm", 5, ANYWHERE, "the same command resumes", BEHIND),
    Case("save.file@1#5=enospc", 0, None, "NOT SAVED", BEHIND),
]

FLOAT64 = ("model.dtype=float64", "data.docs_per_step=4", "evaluation.enabled=false")


def elastic(lab: Lab) -> Row:
    """C: 4 → 2 → 1 → 2 ranks over one run, killed in between, against one rank all the way."""
    lab.train("elastic reference", "", FLOAT64, ranks=1)
    kills = [
        (4, "rollout@3#3=kill", 0),
        (2, "update.before@1#3=kill", 2),
        (1, "step.end#1=kill", 4),
    ]
    problems, fired = [], []
    for ranks, fault, step in kills:
        ended, proofs = lab.train("elastic", fault, FLOAT64, ranks=ranks)
        fired.append(len(proofs) == 1)
        if ended.exit_code != -9 or resumed(ended) != step:
            problems.append(f"{ranks} ranks: {ended.exit_codes}, {resumed(ended)}:\n{ended.output}")
    last, _ = lab.train("elastic", "", FLOAT64, ranks=2)
    if last.exit_code != 0 or resumed(last) != 4:
        problems.append(f"at last: {last.exit_codes}, from {resumed(last)}:\n{last.output}")
    one, other = lab.folder / "elastic reference", lab.folder / "elastic"
    once = ordinals(other) == Counter(range(6 * 4))
    equal = _alike(comparable(one), comparable(other), 1e-9)
    if not equal:
        problems.append("metrics differ by more than 1e-9 from those of one rank")
    for step in range(1, 7):
        ids = [[row["thought_ids"] for row in read_rollouts(run, step)] for run in (one, other)]
        if ids[0] != ids[1]:
            problems.append(f"other thoughts at step {step}")
    sizes = [s["world_size"] for s in json.loads((other / "manifest.json").read_text())["segments"]]
    if sizes != [2, 1, 2]:
        problems.append(f"the manifest tells of {sizes} ranks")
    happened = "ordinals, digests and thoughts those of one rank, metrics to 1e-9"
    return Row(
        "rollout, update.before, step.end",
        "kill; 4 → 2 → 1 → 2 ranks",
        "3 of 4, 1 of 2, 0 of 1",
        happened,
        -9,
        4,
        None,
        once,
        all(fired),
        tuple(problems),
    )


def _alike(rows: list[dict], others: list[dict], tolerance: float) -> bool:
    """The same metrics; digests to the letter, numbers to a tolerance."""

    def same(one: object, other: object) -> bool:
        if isinstance(one, str) or isinstance(other, str):
            return one == other
        return abs(one - other) <= tolerance * max(1.0, abs(one))  # type: ignore[operator]

    return [list(row) for row in rows] == [list(row) for row in others] and all(
        same(value, other[key])
        for row, other in zip(rows, others, strict=True)
        for key, value in row.items()
    )


def _interrupt(case: Case) -> Callable[[Lab], Row]:
    return lambda lab: interrupt(lab, case)


RANK_MATRIX: dict[str, Callable[[Lab], Row]] = {
    **{f"2 ranks: {case.fault}": _interrupt(case) for case in [*KILLS, *ON_ONE]},
    **{f"2 ranks: {case.fault} in a thread": _interrupt(case) for case in ASYNCHRONOUS},
    "2 ranks: one step not finite": one_step_not_finite,
    "2 ranks: streak": streak_rolls_back,
    "2 ranks: streak, killed before the next commit": lambda lab: streak_then_killed(lab, 5, 2),
    "2 ranks: streak, no rollbacks": streak_without_rollbacks,
    "4 → 2 → 1 → 2 ranks": elastic,
}
