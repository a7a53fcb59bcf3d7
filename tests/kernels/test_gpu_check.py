"""`make gpu-check` at toy sizes on the CPU, and what it does with stages that go wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "kernels" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from gpu_stages.runner import Results, Stage, passed, run_stages  # noqa: E402

SCRIPT = BENCHMARKS / "gpu_check.py"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )


@pytest.mark.slow
def test_the_whole_script_at_toy_sizes(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    done = check("--device", "cpu", "--tiny", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["passed"]
    assert found["command"].startswith("gpu_check.py --device cpu --tiny")
    assert {"torch", "rntp"} <= set(found["versions"])
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert [s for s in stages.values() if s["status"] != "ok"] == []
    assert [s["proves"] for s in stages.values()] == [True] * 5 + [False] * 7
    figures = {name: stage["figures"] for name, stage in stages.items()}
    head = figures["head is right"]["relative errors"]
    assert len(head) == 5
    assert all(error < 1e-4 for errors in head.values() for error in errors.values())
    tree = figures["tree attention is right"]["relative errors"][
        "segmented, nested, float32, heads (4, 2, 16)"
    ]
    assert 0 < tree["gradient of keys"] < 1e-5
    assert figures["sampling is right"]["float32, 300"]["tokens that differ"] == 0
    assert figures["decoding is right"]["thoughts that differ"].startswith("0 of ")
    assert figures["decoding is right"]["thoughts that differ, in lanes"].startswith("0 of ")
    assert figures["decoding is right"]["sampler gap, nats"]["float32"] < 1e-4
    assert figures["ceilings"]["copy (read and write), GB/s"] > 0
    assert 0 < figures["trunk"]["share of the matmul ceiling, linear layers alone"] < 5
    timed = figures["head"]["tiny"]["forward and backward"]
    assert timed["rntp chunked"]["ms"] > 0
    assert timed["plain autograd"]["TFLOP/s"] > 0
    assert figures["step"]["agreement"]["rntp"] < 1e-3
    assert str(tmp_path) not in done.stdout.replace(str(out), "")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = check("--out", str(tmp_path / "check.json"))
    assert done.returncode == 2
    assert "no CUDA device" in done.stdout
    assert not (tmp_path / "check.json").exists()


def fine(setting: str) -> dict:
    return {"setting": setting, "process": os.getpid()}


def wrong(setting: str) -> dict:
    raise AssertionError("the gradient of keys is wrong")


def hangs(setting: str) -> dict:
    time.sleep(600)
    return {}


def dies(setting: str) -> dict:
    os._exit(7)


def run(stages: list[Stage], total_s: float = 200) -> tuple[Results, list[int]]:
    kept: list[int] = []
    results = run_stages(stages, "here", total_s=total_s, keep=lambda r: kept.append(len(r)))
    return results, kept


@pytest.mark.slow
def test_no_stage_takes_the_others_down() -> None:
    stages = [
        Stage("first", f"{__name__}:fine", 100, True),
        Stage("second", f"{__name__}:fine", 100, True),
        Stage("wrong", f"{__name__}:wrong", 100, True),
        Stage("dies", f"{__name__}:dies", 100, False),
        Stage("hangs", f"{__name__}:hangs", 1, False),
        Stage("last", f"{__name__}:fine", 100, True),
    ]
    results, kept = run(stages)
    assert kept == [1, 2, 3, 4, 5, 6]  # written down after each
    status = {r["stage"]: r["status"] for r in results}
    assert status == {
        "first": "ok", "second": "ok", "wrong": "failed", "dies": "failed", "hangs": "failed",
        "last": "ok",
    }  # fmt: skip
    why = {r["stage"]: r.get("why", "") for r in results}
    assert "gradient of keys" in why["wrong"]
    assert "Traceback" in why["wrong"]
    assert why["dies"] == "its process ended: 7"
    assert why["hangs"] == "over its budget of 1 s"
    processes = [r["figures"]["process"] for r in results if r["status"] == "ok"]
    assert processes[0] == processes[1] != processes[2]
    assert not passed(results)
    assert passed([r for r in results if r["stage"] != "wrong"])


def test_what_no_longer_fits_is_skipped_with_a_line() -> None:
    results, _ = run([Stage("proof", f"{__name__}:fine", 100, True)], total_s=0)
    assert results[0]["status"] == "skipped"
    assert "time" in results[0]["why"]
    assert not passed(results)  # nothing was proven
