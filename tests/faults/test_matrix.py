"""A handful of the fault matrix; `make faults` runs all of it."""

import json
import os
import re
from pathlib import Path

import pytest
from faults.cases import KILLS, MATRIX
from faults.lab import Lab
from faults.rank_cases import KILLS as KILLS_OF_RANKS
from faults.rank_cases import RANK_MATRIX, RANKS
from faults.sampler_cases import MATRIX as OF_SAMPLERS
from faults.sampler_cases import SAMPLER_MATRIX

from rntp.runtime.faults import POINTS, SAMPLER_POINTS

pytestmark = pytest.mark.slow

FAST = [
    "rollouts.before#3=kill",
    "save.commit.after#2=kill",
    "prune.inside=kill",
    "evaluate.inside#3=sigterm",
    "save.file#5=enospc",
    "bit flipped",
    "streak",
    "streak, killed before the next commit",
]


FAST_OF_RANKS = [
    "2 ranks: save.file@1#5=kill",
    "2 ranks: update.after@1#3=sigint",
    "2 ranks: one step not finite",
]


FAST_OF_SAMPLERS = ["samplers: kill", "samplers: bit flipped", "samplers: all dead"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("together"), RANKS)


@pytest.mark.parametrize("name", FAST)
def test_a_fault_changes_nothing_that_counts(lab: Lab, name: str) -> None:
    row = MATRIX[name](lab)
    assert row.fired
    assert row.passed, "\n".join(row.problems)


@pytest.mark.parametrize("name", FAST_OF_RANKS)
def test_a_fault_of_one_rank_changes_nothing_that_counts(together: Lab, name: str) -> None:
    row = RANK_MATRIX[name](together)
    assert row.fired
    assert row.passed, "\n".join(row.problems)


@pytest.mark.parametrize("name", FAST_OF_SAMPLERS)
def test_a_fault_of_a_sampler_changes_nothing_that_counts(lab: Lab, name: str) -> None:
    row = SAMPLER_MATRIX[name](lab)
    assert row.fired
    assert row.passed, "\n".join(row.problems)


def test_every_point_of_samplers_fails_in_a_case() -> None:
    faults = " ".join(f"{' '.join(case.samplers)} {case.run}" for case in OF_SAMPLERS.values())
    assert [point for point in SAMPLER_POINTS if f"{point}#" not in faults] == []


def test_a_hang_is_named_and_ended(lab: Lab) -> None:
    row = MATRIX["rollout#3=hang"](lab)
    assert row.fired
    assert row.passed, "\n".join(row.problems)
    (folder,) = (p for p in lab.folder.iterdir() if p.is_dir() and "hang" in p.name)
    stacks = (folder / "stacks" / "rank_0.txt").read_text()
    assert "in _sleep_for_ever" in stacks
    assert "in train_step" in stacks
    assert "rank 0 hangs in phase rollout of step 3 (ordinal 6): no sign of life for 5 s" in stacks
    # Of the second start, which is done.
    heartbeat = json.loads((folder / "heartbeat" / "rank_0.json").read_text())
    assert (heartbeat["rank"], heartbeat["step"]) == (0, 6)


def test_every_point_is_reached_by_a_run_and_killed_at(lab: Lab) -> None:
    ended, proofs = lab.train("noted", ";".join(f"{point}=note" for point in POINTS))
    assert ended.exit_code == 0, ended.output
    assert [p["point"] for p in proofs if p["rank"] != 0 or p["nth"] != 1] == []
    assert {p["point"] for p in proofs} == set(POINTS)
    assert "this run is made to fail" in ended.output
    assert {re.split("[#=]", case.fault)[0] for case in KILLS} == set(POINTS)


def test_every_point_of_each_rank_is_killed_at(together: Lab) -> None:
    notes = ";".join(f"{point}@{rank}=note" for point in POINTS for rank in (0, 1))
    ended, proofs = together.train("noted", notes)
    assert ended.exit_codes == (0, 0), ended.output
    reached = {(p["point"], p["rank"]) for p in proofs}
    assert {point for point, rank in reached if rank == 0} == set(POINTS)
    killed = [re.match(r"([\w.]+)@(\d)", case.fault) for case in KILLS_OF_RANKS]
    assert {(match[1], int(match[2])) for match in killed} == reached


def test_the_lab_can_tell(lab: Lab, tmp_path: Path) -> None:
    """The negative case: a run that lost something is not called equal."""
    folder = lab.finished("spoilt")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    (folder / "rollouts" / "step_00000006.jsonl").unlink()
    os.replace(folder / "checkpoints" / "step_00000006", tmp_path / "away")
    equal, once, found = lab.compare("spoilt")
    assert not equal
    assert not once
    assert [text.split()[0] for text in found] == ["metrics", "ordinals", "rollouts", "weights"]
