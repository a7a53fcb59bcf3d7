"""A tiny run that is made to fail, started again with the same command, and compared.

The oracle is the same run without a fault: what both leave behind has to be equal.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from conftest import tiny_model, tiny_run, tiny_tokenizer, write_corpus
from faults.program import Ended, run

from rntp.run import checkpoint
from rntp.run.log import read_metrics
from rntp.run.rollout_files import read_rollouts, rollout_files

STEPS, EVERY, DOCS = 6, 2, 3
ANYWHERE = -1  # in place of the step of a resume, where a thread decides it


@dataclass(frozen=True)
class Row:
    """What one case showed; a line of RESULTS.md. Fields that a case has no say in are None."""

    point: str
    action: str
    rank: str
    happened: str
    exit_code: int
    resumed_at: int | None
    metrics_equal: bool | None
    once: bool | None
    fired: bool
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


class Lab:
    """A folder with a model, a corpus and a config, in which runs are made."""

    def __init__(self, folder: Path, ranks: int = 1) -> None:
        self.folder = folder
        self.ranks = ranks
        folder.mkdir(exist_ok=True)
        model, corpus = folder / "model", folder / "corpus"
        tiny_model("llama").save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
        write_corpus(corpus)
        raw = tiny_run(model, corpus, folder / "run")
        raw["run"]["steps"] = STEPS
        raw["data"]["docs_per_step"] = DOCS
        raw["checkpoint"] = {"every_steps": EVERY, "keep": 2}
        raw["evaluation"] = {"docs": 2, "every_steps": 4}
        raw["parallel"] = {**raw.get("parallel", {}), "timeout_s": 120}
        (folder / "config.yaml").write_text(yaml.safe_dump(raw))

    @cached_property
    def reference(self) -> Path:
        """The run that nothing happens to."""
        ended, _ = self.train("reference")
        assert ended.exit_code == 0, ended.output
        return self.folder / "reference"

    def train(
        self,
        name: str,
        fault: str = "",
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        ranks: int | None = None,
    ) -> tuple[Ended, list[dict]]:
        """Run to its end; how it ended, and the lines of proof of the faults that fired.

        ranks: the lab's unless given.
        """
        proof = self.folder / f"{name}.proof"
        proof.unlink(missing_ok=True)
        armed = {"RNTP_FAULT": fault, "RNTP_FAULT_PROOF": str(proof)} if fault else {}
        sets = [f"--set={option}" for option in options]
        ended = run(
            ["train", f"{self.folder}/config.yaml", f"--run-dir={self.folder / name}", *sets],
            {**armed, **(environment or {})},
            self.folder / f"{name}.out",
            ranks=ranks or self.ranks,
        )
        lines = proof.read_text().splitlines() if proof.exists() else []
        return ended, [json.loads(line) for line in lines]

    def finished(self, name: str) -> Path:
        """A copy of the reference's folder, to be damaged."""
        return Path(shutil.copytree(self.reference, self.folder / name))

    def named(self, rank: int = 0) -> str:
        """A rank for the table."""
        return f"{rank} of {self.ranks}"

    def compare(self, name: str) -> tuple[bool, bool, list[str]]:
        """Metrics equal to the reference's, every ordinal trained once, and all that differs."""
        one, other = self.reference, self.folder / name
        metrics_equal = comparable(one) == comparable(other)
        counts = ordinals(other)
        once = counts == Counter(range(STEPS * DOCS))
        found = []
        if not metrics_equal:
            found.append("metrics differ")
        if not once:
            found.append(f"ordinals were trained {dict(counts)}")
        for kind in ("rollouts", "eval"):
            if contents(one / kind) != contents(other / kind):
                found.append(f"{kind} differ")
        if weights_digest(one) != weights_digest(other):
            found.append("weights or moments differ")
        if left := [p.name for p in (other / "checkpoints").iterdir() if p.name.startswith(".")]:
            found.append(f"left behind: {left}")
        return metrics_equal, once, found


@dataclass(frozen=True)
class Case:
    """A fault in the first of two starts of one command. told: what its output has to say, and
    not_told what it must not.
    """

    fault: str
    exit_code: int
    resumed_at: int | None
    told: str = ""
    options: tuple[str, ...] = ()
    not_told: str = ""

    @property
    def name(self) -> str:
        return re.sub(r"[^\w.#-]+", "_", " ".join([self.fault, *self.options]))


def interrupt(lab: Lab, case: Case) -> Row:
    """Run with the fault, run again without if that did not finish, and compare."""
    first, proofs = lab.train(case.name, case.fault, case.options)
    problems = []
    if len(proofs) < case.fault.count("="):
        problems.append(f"of {case.fault} only {proofs} fired")
    if first.exit_code != case.exit_code:
        problems.append(f"exit code {first.exit_code}, expected {case.exit_code}:\n{first.output}")
    if case.told not in first.output:
        problems.append(f"{case.told!r} was not said:\n{first.output}")
    if case.not_told and case.not_told in first.output:
        problems.append(f"{case.not_told!r} was said:\n{first.output}")
    happened = case.told or "ended"
    resumed_at = None
    if first.exit_code != 0:
        again, _ = lab.train(case.name, "", case.options)
        resumed_at = resumed(again)
        if again.exit_code != 0:
            problems.append(f"the second start ended with {again.exit_code}:\n{again.output}")
        if case.resumed_at not in (resumed_at, ANYWHERE):
            problems.append(f"resumed at {resumed_at}, expected {case.resumed_at}")
    equal, once, different = lab.compare(case.name)
    if case.exit_code == 5 and set(first.exit_codes) != {5}:
        problems.append(f"exit codes {first.exit_codes}: not all ranks were stopped together")
    point, _, action = re.sub(r"@\d+", "", case.fault).partition("=")
    if "checkpoint.asynchronous=true" in case.options:
        action += ", asynchronous save"
    return Row(
        point,
        action,
        lab.named(int(proofs[0]["rank"]) if proofs else 0),
        happened,
        first.exit_code,
        resumed_at,
        equal,
        once,
        bool(proofs),
        tuple(problems + different),
    )


def damage_and_resume(
    lab: Lab, name: str, damage: Callable[[Path], None], told: str, resumed_at: int | None
) -> Row:
    """Damage a finished run's checkpoints, start it again, and compare.

    resumed_at: the step, or None where no checkpoint is left and the program has to say so.
    """
    folder = lab.finished(name)
    damage(folder / "checkpoints")
    again, _ = lab.train(name)
    problems = []
    expected = 4 if resumed_at is None else 0
    if again.exit_code != expected:
        problems.append(f"exit code {again.exit_code}, expected {expected}:\n{again.output}")
    if told not in again.output:
        problems.append(f"{told!r} was not said:\n{again.output}")
    equal = once = None
    if resumed_at is not None:
        if resumed(again) != resumed_at:
            problems.append(f"resumed at {resumed(again)}, expected {resumed_at}")
        equal, once, different = lab.compare(name)
        problems += different
    elif comparable(folder) != comparable(lab.reference):
        problems.append("a refused start changed the metrics")
    return Row(
        "checkpoint",
        name,
        lab.named(),
        told,
        again.exit_code,
        resumed_at,
        equal,
        once,
        True,
        tuple(problems),
    )


def resumed(ended: Ended) -> int:
    """The step that a start went on from, by what it said."""
    match = re.search(r"resuming from .*?step_\d+: (\d+) of", ended.output.replace("\n", " "))
    return int(match[1]) if match else 0


def comparable(run_dir: Path) -> list[dict]:
    """The metrics without what depends on the machine's mood, or on who sampled."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/", "rollout/"))}
        for row in read_metrics(run_dir)
    ]


def ordinals(run_dir: Path) -> Counter:
    """How often each ordinal was trained, by the rollouts."""
    found: Counter = Counter()
    for step in rollout_files(run_dir):
        found.update({row["ordinal"] for row in read_rollouts(run_dir, step)})
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def weights_digest(run_dir: Path) -> str:
    """Of all tensors in the newest checkpoint, by name."""
    _, newest = checkpoint.committed(run_dir / "checkpoints")[-1]
    assert checkpoint.problems(newest) == []
    whole = hashlib.sha256()
    for stem in ("weights", "moments"):
        tensors = checkpoint.load(newest, stem)
        for name in sorted(tensors):
            whole.update(f"{stem}/{name}".encode())
            whole.update(tensors[name].contiguous().flatten().numpy().tobytes())
    return whole.hexdigest()
