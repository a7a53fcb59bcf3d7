"""The fault matrix of samplers: what becomes of a run when those that sample for it fail.

The run is that of the other cases, with `rollout.samplers.max_age: 0` and its thoughts sampled by
programs of their own: whatever happens to them, it has to end as the reference does, which sampled
itself.
"""

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from faults.lab import DOCS, STEPS, Lab, Row, ordinals, resumed
from faults.program import start

from rntp.run.log import read_metrics
from rntp.runtime.files import read_json_lines


def leases(seconds: float, wait_s: float) -> tuple[str, ...]:
    """Options of leases of one context each. seconds: how long one lasts; wait_s: how long the
    trainer waits for anybody."""
    values = {"contexts": 1, "lease_s": seconds, "wait_s": wait_s}
    return tuple(f"rollout.samplers.{name}={value}" for name, value in values.items())


LEASE, BRIEF, SHORT = leases(2, 120), leases(0.7, 120), leases(2, 8)


@dataclass(frozen=True)
class SamplerCase:
    """What fails, in which of the programs. samplers: the fault of each, "" for none. run: of the
    trainer's first start. told: what one of them has to say. joins: a sampler comes for the second
    start. exit_code: of the first start. refused: results that the trainer has to refuse.
    """

    action: str
    samplers: tuple[str, ...]
    run: str = ""
    told: str = ""
    options: tuple[str, ...] = LEASE
    joins: bool = False
    exit_code: int = 0
    refused: int = 0
    environment: tuple[tuple[str, str], ...] = ()
    meanwhile: Callable[[Path, Path], None] | None = None
    twice: bool = False


class Samplers:
    """Samplers of a store, started one by one, and what they leave behind."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.store = lab.folder / f"{name}.store"
        self.store.mkdir()
        self._lab, self._name = lab, name
        self._processes: list = []
        self.outputs: list[Path] = []
        self.proofs: list[Path] = []

    def start(self, fault: str, environment: dict[str, str]) -> None:
        number = len(self._processes)
        output, proof = (
            self._lab.folder / f"{self._name}.s{number}.{kind}" for kind in ("out", "proof")
        )
        armed = {"RNTP_FAULT": fault, "RNTP_FAULT_PROOF": str(proof)} if fault else {}
        arguments = ["sample", str(self.store), "--name", f"s{number}"]
        self._processes.append(start(arguments, {**armed, **environment}, output))
        self.outputs.append(output)
        self.proofs.append(proof)

    def kill(self, of_living: int) -> None:
        """Kill one of those that were started last and live."""
        living = [p for p in self._processes if p.exitcode is None][-2:]
        if living:
            process = living[of_living % len(living)]
            process.kill()
            process.join()

    def start_once_failed(self, number: int, environment: dict[str, str], over: Event) -> None:
        """Start that many without a fault once one has fired: it may come later than they do, and
        find nothing left to sample. over: set where the run has ended."""
        while not self.fired() and not over.wait(0.02):
            pass
        if not over.is_set():
            for _ in range(number):
                self.start("", environment)

    def fired(self) -> int:
        """Faults of samplers that have left their proof."""
        return sum(len(read_json_lines(proof)) for proof in self.proofs if proof.exists())

    def said(self) -> str:
        return "\n".join(out.read_text(errors="replace") for out in self.outputs if out.exists())

    def close(self) -> list[str]:
        """End those that hang; what is wrong with the others."""
        problems = []
        deadline = time.monotonic() + 30
        for number, process in enumerate(self._processes):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
                if "hang" not in self._name and "slow" not in self._name:
                    problems.append(f"sampler {number} did not end with the run")
        return problems


def fail(lab: Lab, name: str, case: SamplerCase) -> Row:
    """Run with samplers, one of which fails; once more where the run ended; and compare."""
    _ = lab.reference
    name = re.sub(r"[^\w.#-]+", "_", name)
    samplers = Samplers(lab, name)
    options = (f"rollout.samplers.store={samplers.store}", *case.options)
    environment = dict(case.environment)
    failing = [fault for fault in case.samplers if fault]
    others = len(case.samplers) - len(failing)
    for fault in failing or case.samplers:
        samplers.start(fault, environment)
    beside, over = [], Event()
    if failing and others:
        beside.append(Thread(target=samplers.start_once_failed, args=(others, environment, over)))
    if case.meanwhile:
        beside.append(Thread(target=case.meanwhile, args=(samplers.store, lab.folder / name)))
    for thread in beside:
        thread.start()
    first, proofs = lab.train(name, case.run, options)
    over.set()
    for thread in beside:
        thread.join()
    problems = []
    resumed_at = None
    output = first.output
    if first.exit_code != case.exit_code:
        problems.append(f"exit code {first.exit_code}, expected {case.exit_code}:\n{output}")
    if first.exit_code != 0:
        if case.joins:
            samplers.start("", {})
        again, _ = lab.train(name, "", options)
        resumed_at, output = resumed(again), output + again.output
        if again.exit_code != 0:
            problems.append(f"the second start ended with {again.exit_code}:\n{again.output}")
    problems += samplers.close()
    said = " ".join((output + samplers.said()).split())
    if case.told not in said:
        problems.append(f"{case.told!r} was not said:\n{said}")
    equal, once, different = lab.compare(name)
    problems += different
    problems += _of_metrics(lab.folder / name, case)
    if case.twice and not _twice(samplers.store):
        problems.append("no part was sampled twice")
    expected = sum(fault.count("=") for fault in (*case.samplers, case.run))
    fired = samplers.fired() + len(proofs) >= max(expected, 1) or case.meanwhile is not None
    where = " and ".join(
        re.sub(r"#[\d-]+|=.*", "", fault) for fault in (*case.samplers, case.run) if fault
    )
    return Row(
        where or "store",
        case.action,
        "a sampler" if any(case.samplers) else "the trainer",
        case.told or "the others sampled",
        first.exit_code,
        resumed_at,
        equal,
        once,
        fired,
        tuple(problems),
    )


def _of_metrics(folder: Path, case: SamplerCase) -> list[str]:
    """What is wrong with what the run says of its samplers."""
    rows = read_metrics(folder)
    found = []
    refused = sum(row["rollout/refused"] for row in rows)
    if refused != case.refused:
        found.append(f"{refused} results were refused, expected {case.refused}")
    if any(row["rollout/age_max"] != 0 for row in rows):
        found.append("rollouts of older weights were trained on")
    if ordinals(folder).total() != STEPS * DOCS:
        found.append("not every ordinal was trained once")
    return found


def _twice(store: Path) -> bool:
    """Two whole results of one part are there."""
    parts: dict[str, int] = {}
    for path in (store / "rollouts").rglob("part_*"):
        key = f"{path.parent.name}/{path.name[:8]}"
        parts[key] = parts.get(key, 0) + 1
    return any(count > 1 for count in parts.values())


def _steps_done(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _away(store: Path, folder: Path) -> None:
    """The store is unmounted for some seconds in the middle of the run."""
    while _steps_done(folder) < 2:
        time.sleep(0.02)
    os.rename(store, store.with_name("away"))
    time.sleep(4)
    os.rename(store.with_name("away"), store)


MATRIX: dict[str, SamplerCase] = {
    "samplers: kill": SamplerCase("kill, while it samples", ("sampler.inside#9=kill", "")),
    "samplers: kill, leased": SamplerCase(
        "kill, once it has a lease", ("sampler.leased#2=kill", "")
    ),
    "samplers: kill, sampled": SamplerCase(
        "kill, before it hands in", ("sampler.sampled#2=kill", "")
    ),
    "samplers: kill, put": SamplerCase("kill, after it has handed in", ("sampler.put#2=kill", "")),
    "samplers: hang": SamplerCase("hang", ("sampler.inside#9=hang", "")),
    "samplers: slow": SamplerCase(
        "slow; its result comes late, as a duplicate",
        ("sampler.inside#1-400=slow", ""),
        options=BRIEF,
        twice=True,
    ),
    "samplers: wrong weights": SamplerCase(
        "wrong weights",
        ("sampler.loaded#2=nan",),
        told="not used: weights: the canary of version 1 lies nan nats a token",
    ),
    "samplers: wrong weights, for good": SamplerCase(
        "wrong weights, every time",
        ("sampler.loaded#2-99=nan", ""),
        told="this sampler does not compute what the trainer does, 3 times in a row",
    ),
    "samplers: bit flipped": SamplerCase(
        "flip, in its rollouts", ("sampler.staged#4=flip:staged",), told="refused", refused=1
    ),
    "samplers: rollouts cut": SamplerCase(
        "truncate, its rollouts", ("sampler.staged#4=truncate:staged",), told="torn", refused=1
    ),
    "samplers: clock skew": SamplerCase(
        "kill, and clocks a day apart",
        ("sampler.inside#9=kill", ""),
        environment=(("TEST_CLOCK_JUMP_S", "-86400"),),
    ),
    "samplers: full store": SamplerCase(
        "enospc, of the trainer and of a sampler",
        ("store.put#7=enospc",),
        run="store.put#9-11=enospc",
        told="No space left on device",
    ),
    "samplers: store away": SamplerCase(
        "unmounted for 4 s", ("", ""), told="the store does not answer", meanwhile=_away
    ),
    "samplers: trainer killed": SamplerCase(
        "kill the trainer; samplers go on", ("",), run="update.after#3=kill", exit_code=-9
    ),
    "samplers: trainer killed, publishing": SamplerCase(
        "kill the trainer between weights and manifest",
        ("",),
        run="weights.put#3=kill",
        exit_code=-9,
    ),
    "samplers: weights damaged": SamplerCase(
        "flip, in the weights of a version",
        ("", ""),
        run="weights.put#3=flip:weights*",
        told="the newest weights are written again, whole",
    ),
    "samplers: trainer stopped": SamplerCase(
        "sigterm to the trainer", ("",), run="rollout#3=sigterm", exit_code=5
    ),
    "samplers: all dead": SamplerCase(
        "kill all of them",
        ("sampler.leased#8=kill",),
        told="and no sampler gave a sign of life for",
        options=SHORT,
        exit_code=5,
        joins=True,
    ),
}

KILLS = 10


def killed_at_random(lab: Lab) -> Row:
    """Kill trainer and samplers ten times, at moments drawn from a seed, and start them again."""
    _ = lab.reference
    draw, name = random.Random(0), "samplers_at_random"
    folder, samplers = lab.folder / name, Samplers(lab, name)
    options = (f"rollout.samplers.store={samplers.store}", *LEASE)
    arguments = ["train", f"{lab.folder}/config.yaml", f"--run-dir={folder}"]
    arguments += [f"--set={option}" for option in options]
    slow = {
        "RNTP_FAULT": "rollout#1-99=slow;backward#1-99=slow"
    }  # so that there is time to kill it
    trainer = start(arguments, slow, lab.folder / f"{name}.0.out")
    for _ in range(2):
        samplers.start("", {})
    killed = {"trainer": 0, "sampler": 0}
    for number in range(1, KILLS + 1):
        trainer.join(draw.uniform(1, 6))
        if trainer.exitcode is not None and _steps_done(folder) == STEPS:
            break  # it was quicker than that
        if draw.random() < 0.5:
            trainer.kill()
            trainer.join()
            trainer = start(arguments, slow, lab.folder / f"{name}.{number}.out")
            killed["trainer"] += 1
        else:
            samplers.kill(draw.randrange(2))
            samplers.start("", {})
            killed["sampler"] += 1
    trainer.join(300)
    problems = [] if trainer.exitcode == 0 else [f"it ended with {trainer.exitcode}"]
    problems += samplers.close()
    equal, once, different = lab.compare(name)
    told = f"killed {killed['trainer']} and {killed['sampler']} times"
    return Row(
        "any",
        "kill, at random",
        "trainer and samplers",
        told,
        -9,
        None,
        equal,
        once,
        sum(killed.values()) == KILLS and min(killed.values()) > 1,
        tuple(problems + different),
    )


SAMPLER_MATRIX: dict[str, Callable[[Lab], Row]] = {
    name: (lambda lab, name=name, case=case: fail(lab, name, case))  # type: ignore[misc]
    for name, case in MATRIX.items()
} | {"samplers: killed at random": killed_at_random}
