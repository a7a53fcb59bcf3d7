"""The fault matrix: every case, and what has to come of it.

A run has 6 steps of 3 contexts, each a microbatch of its own, is saved after steps 2, 4 and 6
(three
kinds of files each) and evaluated before the first step and after steps 4 and 6.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults.lab import (
    DOCS,
    STEPS,
    Case,
    Lab,
    Row,
    comparable,
    damage_and_resume,
    interrupt,
    ordinals,
    resumed,
    weights_digest,
)

from rntp.run.log import read_metrics
from rntp.runtime.faults import damage

WATCHED = ("run.timeouts_s.hang=5",)

# Point and time → the step that the second start goes on from.
KILLED_AT = {
    "start": 0,
    "claimed": 0,
    "restored": 0,
    "rollout#3": 2,
    "forward#8": 2,
    "gradient#8": 2,
    "backward#8": 2,
    "update.before#3": 2,
    "update.after#3": 2,
    "metrics.before#3": 2,
    "rollouts.before#3": 2,
    "step.end#4": 2,
    "evaluate.inside": 0,
    "evaluate.inside#3": 4,
    "evaluate.written#2": 4,
    "save.before#2": 2,
    "save.file#4": 2,
    "save.file#5": 2,
    "save.file#6": 2,
    "save.commit.before#2": 2,
    "save.commit.after#2": 2,
    "save.rename.before#2": 2,
    "save.rename.after#2": 4,
    "prune.before#3": 6,
    "prune.inside": 6,
    "prune.after#3": 6,
}
KILLS = [Case(f"{point}=kill", -9, step) for point, step in KILLED_AT.items()]

SIGNALS = [
    Case("start=sigterm", 5, 0, "stopped by SIGTERM"),
    Case("claimed=sigterm", 5, 0, "the same command resumes"),
    Case("rollout#3=sigterm", 5, 2, "the same command resumes"),
    Case("rollout#3=sigint", 5, 2, "stopped by SIGINT"),
    Case("forward#8=sigterm", 5, 2, "the same command resumes"),
    Case("backward#9=sigterm", 5, 3, "the same command resumes"),
    Case("update.after#3=sigterm", 5, 3, "the same command resumes"),
    Case("metrics.before#3=sigterm", 5, 3, "the same command resumes"),
    Case("save.file#5=sigterm", 5, 4, "the same command resumes"),
    Case("evaluate.inside#3=sigterm", 5, 4, "the same command resumes"),
    # The second one ends the run where it is, and costs nothing that was committed.
    Case("update.before#3=sigterm;update.after#3=insist", 143, 2),
    Case("save.file#5=sigterm;save.file#6=insist", 143, 2),
]

ERRORS = [
    Case("update.after#3=raise", 1, 2),
    Case("save.before#2=enospc", 0, None, "NOT SAVED"),
    Case("save.file#5=enospc", 0, None, "NOT SAVED"),
    Case("save.commit.before#3=enospc", 4, 4, "No space left on device"),
    Case("save.before#1-3=enospc", 4, 0, "No space left on device"),
    Case("metrics.before#3=enospc", 0, None, "wait in memory"),
    Case("rollouts.before#3=enospc", 0, None, "wait in memory"),
    # A checkpoint is damaged once it is there; nobody knows until it is read, or pruned by.
    Case("save.rename.after#2=flip:weights/*;step.end#5=kill", -9, 2),
    Case("save.rename.after#2=truncate:weights/*;prune.after#3=kill", -9, 6),
]

HANGS = [
    Case("rollout#3=hang", -9, 2, "hangs in phase rollout of step 3 (ordinal 6)", WATCHED),
    Case("save.file#5=stuck", -9, 2, "hangs in phase save of step 4 (ordinal 9)", WATCHED),
    Case("evaluate.inside#3=hang", -9, 4, "hangs in phase evaluate", WATCHED),
]


def _newest(how: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda checkpoints: how(checkpoints / f"step_{STEPS:08d}")


def _edit_commit(checkpoint: Path) -> None:
    path = checkpoint / "COMMIT.json"
    facts = json.loads(path.read_text())
    del facts["files"][next(name for name in facts["files"] if name.startswith("moments/"))]
    path.write_text(json.dumps(facts))


def _all_flipped(checkpoints: Path) -> None:
    for checkpoint in checkpoints.glob("step_*"):
        damage(_file(checkpoint, "weights"), "flip")


def _file(checkpoint: Path, stem: str) -> Path:
    """Its last shard."""
    return sorted((checkpoint / stem).iterdir())[-1]


def _through_an_archive(checkpoints: Path) -> None:
    """Packed, unpacked elsewhere, and the newest lost on the way."""
    archive = shutil.make_archive(str(checkpoints.with_name("copy")), "tar", checkpoints)
    shutil.rmtree(checkpoints)
    shutil.unpack_archive(archive, checkpoints)
    Path(archive).unlink()
    shutil.rmtree(checkpoints / f"step_{STEPS:08d}")


# Name → what is done to a finished run's checkpoints, what the next start says, where it goes on.
DAMAGE: dict[str, tuple[Callable[[Path], None], str, int | None]] = {
    "bit flipped": (
        _newest(lambda p: damage(_file(p, "weights"), "flip")),
        ".safetensors: its bytes have changed",
        4,
    ),
    "page zeroed": (
        _newest(lambda p: damage(_file(p, "moments"), "zero")),
        ".safetensors: its bytes have changed",
        4,
    ),
    "truncated": (
        _newest(lambda p: damage(_file(p, "weights"), "truncate")),
        " bytes, ",
        4,
    ),
    "file missing": (
        _newest(lambda p: _file(p, "moments").unlink()),
        ".safetensors: missing",
        4,
    ),
    "file added": (
        _newest(lambda p: (p / "more.bin").write_bytes(b"x") and None),
        "more.bin: not of this checkpoint",
        4,
    ),
    "COMMIT missing": (
        _newest(lambda p: (p / "COMMIT.json").unlink()),
        "COMMIT.json: missing",
        4,
    ),
    "COMMIT edited": (_newest(_edit_commit), "COMMIT.json: it has been edited", 4),
    "all flipped": (_all_flipped, "none of the 2 checkpoints", None),
    "archived and unpacked": (_through_an_archive, "resuming from", 4),
}


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def pickle_is_not_read(lab: Lab) -> Row:
    """A pickle in the place where torch.distributed.checkpoint would have one: refused by name;
    and with a forged commit that knows it, left alone.
    """
    sprung = lab.folder / "sprung"
    trap = pickle.dumps(_Trap(sprung))
    pickle.loads(pickle.dumps(_Trap(lab.folder / "armed")))
    problems = [] if (lab.folder / "armed").is_dir() else ["the trap does not work"]
    found = []
    for name in ("pickle", "pickle, forged"):
        newest = lab.finished(name) / "checkpoints" / f"step_{STEPS:08d}"
        (newest / "weights" / ".metadata").write_bytes(trap)
        if name == "pickle, forged":
            commit = json.loads((newest / "COMMIT.json").read_text())
            del commit["sha256"]
            digest = hashlib.sha256(trap).hexdigest()
            commit["files"]["weights/.metadata"] = {"bytes": len(trap), "sha256": digest}
            whole = hashlib.sha256(json.dumps(commit, sort_keys=True).encode()).hexdigest()
            (newest / "COMMIT.json").write_text(json.dumps({**commit, "sha256": whole}))
        again, _ = lab.train(name)
        found.append(resumed(again))
        if again.exit_code != 0:
            problems.append(f"{name}: exit code {again.exit_code}:\n{again.output}")
        if name == "pickle" and "weights/.metadata: not of this checkpoint" not in again.output:
            problems.append(f"the pickle was not named:\n{again.output}")
    if found != [4, STEPS]:
        problems.append(f"resumed at {found}")
    if sprung.exists():
        problems.append("the pickle was read")
    equal, once, different = lab.compare("pickle")
    action, happened = "malicious pickle added", "refused by name; never read, not even if forged"
    everything = tuple(problems + different)
    return Row(
        "checkpoint", action, lab.named(), happened, 0, found[0], equal, once, True, everything
    )


def killed_in_a_second_save(lab: Lab) -> Row:
    """C2: the save of step 4, done again over its damaged self, is killed half way."""
    name = "C2"
    lab.train(name, "save.rename.after#2=flip:weights/*;step.end#5=kill")
    _, proofs = lab.train(name, "save.rename.before=kill")
    return _finish(lab, name, "save.rename.before", "kill, second save of a step", len(proofs), 2)


def other_clock_and_host(lab: Lab) -> Row:
    """R9: the requeue is on another host, in another time zone, a day earlier."""
    name = "R9"
    _, proofs = lab.train(name, "step.end#3=kill")
    elsewhere = {"TZ": "Pacific/Kiritimati", "TEST_CLOCK_JUMP_S": "-86400", "HOSTNAME": "other"}
    return _finish(lab, name, "step.end", "other clock, zone, host", len(proofs), 2, elsewhere)


def _finish(
    lab: Lab,
    name: str,
    point: str,
    action: str,
    fired: int,
    resumed_at: int,
    environment: dict[str, str] | None = None,
) -> Row:
    again, _ = lab.train(name, environment=environment)
    equal, once, problems = lab.compare(name)
    if again.exit_code != 0:
        problems.append(f"exit code {again.exit_code}:\n{again.output}")
    if resumed(again) != resumed_at:
        problems.append(f"resumed at {resumed(again)}, expected {resumed_at}")
    return Row(
        point,
        action,
        lab.named(),
        "resumed",
        -9,
        resumed(again),
        equal,
        once,
        fired > 0,
        tuple(problems),
    )


def one_step_not_finite(lab: Lab) -> Row:
    """R5: a NaN in the loss and an infinite gradient, both on the last rank alone, leave the same
    weights: those of no update.
    """
    problems, found = [], []
    rank, nth = lab.ranks - 1, {1: 7, 2: 5}[lab.ranks]
    for name, point in (("R5 nan", "forward"), ("R5 inf", "gradient")):
        fault = f"{point}@{rank}#{nth}={name.split()[1]}"
        ended, proofs = lab.train(name, fault)
        folder = lab.folder / name
        found.append(weights_digest(folder))
        if ended.exit_code != 0 or len(proofs) != 1:
            problems.append(f"{fault}: exit code {ended.exit_code}, {proofs}:\n{ended.output}")
        if [row["skipped"] for row in read_metrics(folder)] != [0, 0, 1, 0, 0, 0]:
            problems.append(f"{fault}: not just step 3 was skipped")
        note = json.loads((folder / "quarantine" / "step_00000003.json").read_text())
        if note["ordinals"] != [6, 7, 8]:
            problems.append(f"{fault}: {note}")
    if found[0] != found[1] or found[0] == weights_digest(lab.reference):
        problems.append("the skipped steps did not leave equal weights, other than the reference's")
    said, where = "step 3 skipped by all", "forward, gradient"
    return Row(where, "nan, inf", lab.named(rank), said, 0, None, None, None, True, tuple(problems))


# Both steps 3 and 4, on the last rank alone.
STREAK = {1: "forward#7-12=nan", 2: "forward@1#5-8=nan"}
FIRED = {1: 6, 2: 4}
STREAK_OPTIONS = ("run.on_trouble={roll_back: {skipped_steps: 2}}",)


def streak_rolls_back(lab: Lab) -> Row:
    """R5: two steps without a finite loss: back to step 2, on without their ordinals."""
    ended, proofs = lab.train("streak", STREAK[lab.ranks], STREAK_OPTIONS)
    rank = lab.ranks - 1
    folder = lab.folder / "streak"
    problems = []
    if ended.exit_code != 0 or "going back to step 2 without ordinals 6 … 11" not in ended.output:
        problems.append(f"exit code {ended.exit_code}:\n{ended.output}")
    aside = range(2 * DOCS, 4 * DOCS)
    expected = Counter(set(range((STEPS + 2) * DOCS)) - set(aside))
    once = ordinals(folder) == expected
    if not once:
        problems.append(f"ordinals were trained {dict(ordinals(folder))}")
    rows = read_metrics(folder)
    if [(row["step"], row["skipped"]) for row in rows] != [(n, 0) for n in range(1, STEPS + 1)]:
        problems.append(f"metrics of steps {[row['step'] for row in rows]}")
    note = json.loads((folder / "quarantine" / "rollback_1.json").read_text())
    if note["ordinals"] != list(aside) or note["to_step"] != 2 or len(note["metrics"]) != 2:
        problems.append(f"rollback_1.json says {note}")
    kept = sorted(p.name for p in (folder / "quarantine" / "rollback_1").iterdir())
    if kept != ["step_00000003.jsonl", "step_00000004.jsonl"]:
        problems.append(f"thoughts kept: {kept}")
    fired = len(proofs) == FIRED[lab.ranks]
    said = "back to step 2"
    return Row(
        "forward", "nan, a streak", lab.named(rank), said, 0, 2, None, once, fired, tuple(problems)
    )


def streak_then_killed(lab: Lab, time: int, resumed_at: int) -> Row:
    """The same run killed after its rollback ends as if it had not been."""
    if not (lab.folder / "streak").exists():
        streak_rolls_back(lab)
    name = f"streak killed {time}"
    _, proofs = lab.train(name, f"{STREAK[lab.ranks]};step.end@0#{time}=kill", STREAK_OPTIONS)
    again, _ = lab.train(name, "", STREAK_OPTIONS)
    one, other = lab.folder / "streak", lab.folder / name
    equal = comparable(one) == comparable(other)
    once = ordinals(one) == ordinals(other)
    problems = [] if equal and once else ["metrics or ordinals differ from the run not killed"]
    if weights_digest(one) != weights_digest(other):
        problems.append("weights differ")
    if again.exit_code != 0 or resumed(again) != resumed_at:
        problems.append(f"{again.exit_code}, resumed at {resumed(again)}:\n{again.output}")
    return Row(
        "step.end",
        "kill after a rollback",
        lab.named(),
        "resumed",
        -9,
        resumed(again),
        equal,
        once,
        len(proofs) == FIRED[lab.ranks] + 1,
        tuple(problems),
    )


def streak_without_rollbacks(lab: Lab) -> Row:
    """Where no rollback is left, the run ends with exit code 6 and says why."""
    options = ("run.on_trouble={roll_back: {skipped_steps: 2, rollbacks: 0}}",)
    ended, proofs = lab.train("diverged", STREAK[lab.ranks], options)
    told = "has gone back 0 times" in ended.output.replace("\n", " ")
    problems = [] if ended.exit_code == 6 and told else [f"{ended.exit_code}:\n{ended.output}"]
    return Row(
        "forward",
        "nan, a streak, no rollbacks",
        lab.named(),
        "diverged",
        ended.exit_code,
        None,
        None,
        None,
        len(proofs) == FIRED[lab.ranks],
        tuple(problems),
    )


SECRET = "canary-0123456789"


def secret_stays_out(lab: Lab) -> Row:
    """R8: a secret of the environment that comes into a path is in no file but the config."""
    name = f"R8 {SECRET}"
    ended, proofs = lab.train(
        name, "evaluate.inside#3=hang", WATCHED, {"WANDB_API_KEY": SECRET, "PYTHONFAULTHANDLER": ""}
    )
    folder = lab.folder / name
    leaks = [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != "config.yaml" and SECRET.encode() in path.read_bytes()
    ]
    problems = [f"in {leaks}"] if leaks else []
    if "[redacted]" not in (folder / "manifest.json").read_text():
        problems.append("nothing had to be redacted, so this shows nothing")
    said = "no leak"
    code = ended.exit_code
    return Row(
        "environment",
        "secret",
        lab.named(),
        said,
        code,
        None,
        None,
        None,
        bool(proofs),
        tuple(problems),
    )


def _interrupt(case: Case) -> Callable[[Lab], Row]:
    return lambda lab: interrupt(lab, case)


def _damage(name: str) -> Callable[[Lab], Row]:
    how, told, resumed_at = DAMAGE[name]
    return lambda lab: damage_and_resume(lab, name, how, told, resumed_at)


MATRIX: dict[str, Callable[[Lab], Row]] = {
    **{case.fault: _interrupt(case) for case in [*KILLS, *SIGNALS, *ERRORS, *HANGS]},
    **{name: _damage(name) for name in DAMAGE},
    "malicious pickle": pickle_is_not_read,
    "second save of a step": killed_in_a_second_save,
    "other clock and host": other_clock_and_host,
    "one step not finite": one_step_not_finite,
    "streak": streak_rolls_back,
    "streak, killed before the next commit": lambda lab: streak_then_killed(lab, 5, 2),
    "streak, killed after the next commit": lambda lab: streak_then_killed(lab, 7, 4),
    "streak, no rollbacks": streak_without_rollbacks,
    "secret": secret_stays_out,
}
