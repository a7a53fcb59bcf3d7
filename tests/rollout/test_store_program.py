"""Samplers as programs of their own: started by the run, or beside it, and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import same_shards, tiny_run

from rntp.config import Config
from rntp.run.log import read_metrics
from rntp.trainer import Trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def comparable(run_dir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/", "rollout/"))}
        for row in read_metrics(run_dir)
    ]


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Path:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["evaluation"] = {"docs": 0}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def start(*arguments: object) -> subprocess.Popen:
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "data_prep")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "rntp", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
    )


def test_a_run_starts_its_samplers_and_ends_them(config: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    Trainer(Config.load(config, [f"run.dir={plain}"])).fit()
    run = start("train", config, "--set", "rollout.samplers.start=2")
    said, _ = run.communicate(timeout=280)
    assert run.returncode == 0, said
    folder = tmp_path / "run"
    assert comparable(folder) == comparable(plain)
    same_shards(plain / "checkpoints/step_00000004", folder / "checkpoints/step_00000004")
    for name in ("local-1", "local-2"):
        assert "samples for" in (folder / "samplers" / f"{name}.txt").read_text()
    assert _samplers_of(folder / "store") == []


def test_samplers_go_with_a_run_that_is_killed(config: Path, tmp_path: Path) -> None:
    run = start("train", config, "--set", "rollout.samplers.start=1", "--set", "run.steps=4000")
    store = tmp_path / "run" / "store"
    _until(lambda: len(read_metrics(tmp_path / "run")) >= 2, run)
    assert len(_samplers_of(store)) == 1
    run.kill()
    run.wait()
    _until(lambda: _samplers_of(store) == [], None)


def test_a_sampler_is_killed_and_another_joins(config: Path, tmp_path: Path) -> None:
    plain, store = tmp_path / "plain", tmp_path / "store"
    Trainer(Config.load(config, [f"run.dir={plain}", "run.steps=8"])).fit()
    store.mkdir()
    options = [f"rollout.samplers.store={store}", "rollout.samplers.lease_s=3", "run.steps=8"]
    run = start("train", config, *[part for o in options for part in ("--set", o)])
    first = start("sample", store, "--name", "first")
    _until(lambda: len(read_metrics(tmp_path / "run")) >= 2, run)
    first.send_signal(signal.SIGKILL)
    second = start("sample", store, "--name", "second")
    said, _ = run.communicate(timeout=280)
    assert run.returncode == 0, said
    last, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert "the run is done; second-" in last
    assert comparable(tmp_path / "run") == comparable(plain)
    names = json.loads((tmp_path / "run/sampled/step_00000008.json").read_text())["files"]
    assert ".second-" in names[0][0]


def _until(condition: object, run: subprocess.Popen | None) -> None:
    deadline = time.monotonic() + 200
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        assert run is None or run.poll() is None, run.communicate()[0]
        time.sleep(0.1)


def _samplers_of(store: Path) -> list[int]:
    """Processes that sample for a store."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"sample" in words and str(store).encode() in words:
                found.append(int(process.name))
    return found
