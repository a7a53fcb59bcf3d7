"""Runs of a grid get a GPU each; without one they get nothing."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rntp.ablate import launch as module
from rntp.ablate.devices import least_used, visible_gpus


@pytest.mark.parametrize(
    ("environ", "count", "found"),
    [
        ({}, 2, ["0", "1"]),
        ({}, 0, []),
        ({"CUDA_VISIBLE_DEVICES": "3, 5"}, 2, ["3", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f2a,GPU-11"}, 2, ["GPU-8f2a", "GPU-11"]),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1, ["0"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, []),
    ],
)
def test_those_that_this_process_sees(environ: dict, count: int, found: list[str]) -> None:
    assert visible_gpus(environ, count) == found


def test_the_least_used_one_is_next() -> None:
    assert least_used([], [None]) is None
    assert least_used(["0", "1"], []) == "0"
    assert least_used(["0", "1"], ["0"]) == "1"
    assert least_used(["0", "1"], ["0", "1", "1"]) == "0"


@pytest.mark.parametrize(("gpus", "device"), [(2, "auto"), (0, "auto"), (2, "cpu")])
def test_every_run_is_started_on_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, device: str
) -> None:
    """Four runs, two at a time; each prints what it sees and lives until its neighbour has."""
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES')); time.sleep(1)"
    runs = []
    for n in range(4):
        folder = tmp_path / f"seed_{n}"
        config = SimpleNamespace(run=SimpleNamespace(steps=1), model=SimpleNamespace(device=device))
        runs.append(
            SimpleNamespace(
                label=f"run {n}",
                folder=folder,
                log=folder.with_suffix(".log"),
                starts=folder.with_suffix(".starts"),
                config=config,
                command=[sys.executable, "-c", program],
                arguments=["train"],
            )
        )
    module.launch(runs, jobs=2, console=Console(quiet=True), on_finished=lambda run: None)
    seen = [run.log.read_text().strip() for run in runs]
    noted = [json.loads(run.starts.read_text())["gpu"] for run in runs]
    if gpus and device != "cpu":
        assert sorted(seen[:2]) == sorted(seen[2:]) == ["0", "1"]
        assert noted == seen
    else:
        assert seen == ["None"] * 4
        assert noted == [None] * 4
