"""A grid of real runs: stopped, resumed, with an arm that fails."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import tiny_run

from rntp.cli import main

pytestmark = pytest.mark.slow

SLOW = 120


@pytest.fixture
def experiment(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Two arms × two seeds of a second each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    base = tiny_run(model_folders["llama"], corpus, Path("unused"))
    base["checkpoint"] = {"every_steps": 1000, "keep": 1}
    # Enough of the plain loss that learning shows beside the noise of three pages, on any machine.
    base["objective"] = {"ntp_weight": 1.0, "pg_weight": 0.1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(base))
    raw = {
        "name": "tiny",
        "question": "Does the learning rate matter?",
        "base": "config.yaml",
        "seeds": [0, 1],
        "set": {"run.steps": 32},
        "arms": {"lr 1e-3": {"optim.lr": 1e-3}, "no lr": {"optim.lr": 1e-12}},
        "controls": ["no lr"],
        "reference": "no lr",
        "columns": {
            "loss without thinking": {"eval": "nll/no_think"},
            "change": {"change": "nll/no_think"},
            "tokens": {"metrics": "tokens/context", "sum": True, "digits": 0},
        },
        "plot": {"y": "change", "curve": "loss/ntp"},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def call(*arguments: object) -> int:
    """Exit code of the program."""
    try:
        main(["ablate", *(str(a) for a in arguments)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(SLOW * 20):
        if path.exists() and path.read_bytes().count(b"\n") >= 2:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {path}")


def test_a_grid_stops_resumes_and_survives_a_failing_arm(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Path("runs/ablate/tiny")
    command = [sys.executable, "-m", "rntp.cli", "ablate", str(experiment), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(runs / "lr-1e-3" / "seed_0" / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=SLOW)
    assert process.returncode == 5, told
    assert "SIGTERM: waiting for 2 runs to save" in told
    assert "0 of 4 runs are finished; the same command with --resume goes on" in told
    assert not Path("results/tiny/table.md").exists()
    assert "the same command resumes" in (runs / "lr-1e-3" / "seed_0.log").read_text()
    assert not (runs / "no-lr").exists()

    assert call(experiment) == 2
    assert "go on with --resume, or delete them" in capsys.readouterr().err
    assert call(experiment, "--resume", "--jobs", 2, "--json") == 0
    out, err = capsys.readouterr()
    assert "done 4/4" in err
    results = json.loads(out)
    assert results == json.loads(Path("results/tiny/table.json").read_text())
    trained, control = results["arms"]
    assert [run["state"] for arm in results["arms"] for run in arm["runs"]] == ["finished"] * 4
    assert [start["exit_code"] for start in trained["runs"][0]["starts"]] == [5, 0]
    assert trained["columns"]["change"]["mean"] < -0.3  # it learns …
    assert abs(control["columns"]["change"]["mean"]) < 1e-3  # … and without a rate it does not
    assert trained["difference"]["n"] == 2
    assert trained["difference"]["mean"] == pytest.approx(
        trained["columns"]["change"]["mean"] - control["columns"]["change"]["mean"]
    )
    # What was resumed is what a run that never stopped computes.
    assert trained["columns"]["tokens"]["lowest"] == 32 * 3 * 48
    text = Path("results/tiny/table.md").read_text()
    assert "no lr (control)" in text
    assert results["provenance"]["data_digests"][0][:16] in text
    assert Path("results/tiny/plot.png").exists()

    before = {path: path.read_bytes() for path in runs.rglob("metrics.jsonl")}
    assert len(before) == 4
    raw = yaml.safe_load(experiment.read_text())
    raw["arms"]["broken"] = {"optim.lr": 1e9}
    experiment.write_text(yaml.safe_dump(raw, sort_keys=False))
    script = "echo one; printf 'a\\033[2Jtwo\\n'; exit 6"
    monkeypatch.setattr("rntp.ablate.grid.Run.command", property(lambda run: ["sh", "-c", script]))
    assert call(experiment, "--resume") == 6  # the exit code of the run
    out, err = capsys.readouterr()
    assert "4 of 6 runs are finished already" in err
    assert "FAILED  broken, seed 0  exit code 6" in err
    assert "2 of 2 runs failed" in err
    assert f"broken, seed 1: exit code 6; {runs / 'broken' / 'seed_1.log'}" in err
    assert "the log of broken, seed 0 ends:\n  one\n  a [2Jtwo\n" in err  # and clears no terminal
    assert "0 of 2: seed 0 failed (exit code 6), seed 1 failed (exit code 6)" in out
    assert {path: path.read_bytes() for path in before} == before


def test_runs_share_the_cores(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell stands in for the run: it ends well, and is then told not to be a finished run."""
    monkeypatch.setattr(
        "rntp.ablate.grid.Run.command",
        property(lambda run: ["sh", "-c", "echo $OMP_NUM_THREADS,$MKL_NUM_THREADS"]),
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("rntp.ablate.launch._cores", lambda: 8)
    assert call(experiment, "--jobs", 3, "--only", "no lr") == 2
    err = capsys.readouterr().err
    log = Path("runs/ablate/tiny/no-lr/seed_0.log")
    assert log.read_text() == "4,4\n"  # two runs, whatever --jobs allows
    assert "config.yaml changed meanwhile" in err
    assert not Path("runs/ablate/tiny/lr-1e-3").exists()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert call(experiment, "--jobs", 1, "--only", "no lr") == 2
    assert log.read_text() == "4,4\n7,8\n"


def test_a_killed_run_is_told_as_a_shell_tells_it(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "rntp.ablate.grid.Run.command", property(lambda run: ["sh", "-c", "kill -9 $$"])
    )
    assert call(experiment, "--only", "no lr") == 128 + signal.SIGKILL
    assert "no lr, seed 0: exit code 137" in capsys.readouterr().err


def test_runs_of_a_job_array_and_their_table(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run a task, by its number; the table comes behind them."""
    assert call(experiment, "--run", 4) == 2
    assert "has runs 0 … 3" in capsys.readouterr().err
    for number in (0, 2):
        assert call(experiment, "--run", number) == 0
    root = experiment.parent / "runs/ablate/tiny"
    there = sorted(str(p.parent.relative_to(root)) for p in root.rglob("metrics.jsonl"))
    assert there == ["lr-1e-3/seed_0", "no-lr/seed_0"]
    assert not (experiment.parent / "results").exists()  # tasks at a time make no table
    capsys.readouterr()
    assert call(experiment, "--run", 2) == 0
    assert "is finished already" in capsys.readouterr().err
    assert call(experiment, "--table") == 0
    assert "lr 1e-3" in capsys.readouterr().out


def test_a_grid_on_ray_is_the_same_grid(experiment: Path) -> None:
    pytest.importorskip("ray")
    # Ray leaves threads and signal handlers behind: in a process of its own.
    command = [sys.executable, "-m", "rntp.cli", "ablate", str(experiment), "--on", "ray"]
    done = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    starts = list((experiment.parent / "runs/ablate/tiny").rglob("*.starts.jsonl"))
    assert len(starts) == 4
    for path in starts:
        [start] = [json.loads(line) for line in path.read_text().splitlines()]
        assert start["on"] == "ray"
        assert start["exit_code"] == 0
    assert "lr 1e-3" in done.stdout
