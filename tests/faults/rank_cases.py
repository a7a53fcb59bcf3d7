"""The fault matrix on many ranks: every point on each of two, and what only many can get wrong.

Of the three contexts of a step rank 0 has one and rank 1 two; both evaluate one page each.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults.cases import (
    WATCHED,
    one_step_not_finite,
    streak_rolls_back,
    streak_then_killed,
    streak_without_rollbacks,
)
from faults.lab import ANYWHERE, Case, Lab, Row, comparable, interrupt, ordinals, resumed
from faults.program import Ended

from rntp.run.log import read_metrics, read_rollouts

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
    "rollouts.before#3": 2,
    "evaluate.inside": 0,
    "evaluate.inside#3": 4,
    "save.file#4": 2,
    "save.file#5": 2,
    "save.file#6": 2,
}
MICROBATCH_OF_STEP_3 = (3, 6)
ON_FIRST = {
    "metrics.before#3": 2,
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

FLOAT64 = ("model.dtype=float64", "data.docs_per_step=4", "evaluation.docs=0")


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
    sizes = [s["world_size"] for s in json.loads((other / "manifest.json").read_text())["starts"]]
    if sizes != [4, 2, 1, 2]:
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


def torchrun_is_stopped(lab: Lab) -> Row:
    """As a scheduler does it: SIGTERM to every process of the job, of which torchrun hands its own
    on to ranks that already have it.
    """
    folder, output = lab.folder / "torchrun", lab.folder / "torchrun.out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "rntp.cli", "train", f"{lab.folder}/config.yaml", f"--run-dir={folder}"]
    command = [*torchrun, *program]
    with output.open("wb") as out:
        first = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        while first.poll() is None and not read_metrics(folder):
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGTERM)
        first.wait(120)
        text = output.read_text(errors="replace")
        again = subprocess.run(command, stdout=out, stderr=out, timeout=300)
    problems = []
    if (first.returncode, again.returncode) != (1, 0):  # torchrun's own
        problems.append(f"exit codes {first.returncode}, {again.returncode}:\n{text}")
    fired = "stopped by SIGTERM" in text
    if text.count("the same command resumes") != 1:
        problems.append(f"not one coordinated save:\n{text}")
    ended = Ended((again.returncode,), output.read_text(errors="replace"), 0)
    equal, once, different = lab.compare("torchrun")
    return Row(
        "wherever it is",
        "SIGTERM to torchrun and its ranks",
        lab.named(),
        "one save; torchrun says 1",
        first.returncode,
        resumed(ended),
        equal,
        once,
        fired,
        tuple(problems + different),
    )


STAND_INS = {
    "scontrol": """
        case $1 in
            show) echo localhost ;;
            requeue) echo "requeued $2" ;;
        esac
    """,
    # Starts every task, and ends with the highest exit code.
    "srun": """
        shift
        for n in $(seq 0 $((SLURM_NTASKS - 1))); do
            SLURM_PROCID=$n SLURM_LOCALID=$n "$@" & tasks="$tasks $!"
        done
        for task in $tasks; do wait $task; code=$?; [ $code -gt ${most:-0} ] && most=$code; done
        exit ${most:-0}
    """,
    "rntp": """exec "$TEST_PYTHON" -m rntp.cli "$@" """,
}


def slurm_requeues(lab: Lab) -> Row:
    """experiments/cluster/slurm.sh with stand-ins for SLURM's commands: the same job, twice."""
    folder, stand_ins = lab.folder / "slurm", lab.folder / "bin"
    stand_ins.mkdir()
    for name, text in STAND_INS.items():
        (stand_ins / name).write_text(f"#!/bin/bash\n{textwrap.dedent(text)}\n")
        (stand_ins / name).chmod(0o755)
    proof = lab.folder / "slurm.proof"
    job = {
        **os.environ,
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "TEST_PYTHON": sys.executable,
        "CONFIG": f"{lab.folder}/config.yaml",
        "RNTP_ARGS": f"--run-dir {folder}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    fault = {"RNTP_FAULT": "update.after@1#3=sigterm", "RNTP_FAULT_PROOF": str(proof)}
    script = str(Path(__file__).parents[2] / "experiments/cluster/slurm.sh")
    first, again = (
        subprocess.run(
            ["bash", script], env=job | more, capture_output=True, text=True, timeout=300
        )
        for more in (fault, {"SLURM_RESTART_COUNT": "1"})
    )
    problems = []
    if first.returncode != 0 or "requeued 7" not in first.stdout:
        problems.append(f"not requeued: {first.returncode}\n{first.stdout}{first.stderr}")
    if again.returncode != 0 or "requeued" in again.stdout:
        problems.append(f"not done: {again.returncode}\n{again.stdout}{again.stderr}")
    equal, once, different = lab.compare("slurm")
    return Row(
        "update.after#3",
        "sigterm, experiments/cluster/slurm.sh",
        lab.named(1),
        "requeued (stand-ins for srun and scontrol)",
        first.returncode,
        resumed(Ended((0,), again.stdout, 0)),
        equal,
        once,
        proof.exists(),
        tuple(problems + different),
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
    "torchrun is stopped": torchrun_is_stopped,
    "slurm script": slurm_requeues,
}
