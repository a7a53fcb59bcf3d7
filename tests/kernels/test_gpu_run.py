"""`make gpu-run` at toy sizes on the CPU: in pieces, with the same end as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import tiny_run

from rntp.run.log import read_metrics

SCRIPT = Path(__file__).parents[2] / "kernels" / "benchmarks" / "gpu_run.py"


@pytest.mark.slow
def test_pieces_come_to_the_same_end(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "unused")
    raw["run"]["steps"] = 6
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(raw))

    def gpu_run(name: str, seconds: int, docs: int) -> subprocess.CompletedProcess[str]:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        if not (out / "batch.json").exists():
            (out / "batch.json").write_text(json.dumps({"docs": docs}))
        command = [sys.executable, str(SCRIPT), "--config", str(config), "--out", str(out)]
        # Not installed: the checkout alone has to do.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [*command, "--seconds", str(seconds)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=280,
        )

    whole = gpu_run("whole", 240, 3)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    found = json.loads((tmp_path / "whole/gpu_run.json").read_text())
    assert found["steps"] == 6
    assert found["documents a step"] == 3
    assert len(found["evaluations"]) == 2
    assert found["tree tokens a second"] > 0
    # A piece that is over at once is no failure, and loses nothing.
    first = gpu_run("pieces", 41, 3)
    assert first.returncode == 5, first.stdout + first.stderr
    assert "the same command goes on" in first.stdout
    assert gpu_run("pieces", 240, 3).returncode == 0
    one, other = (read_metrics(tmp_path / name / "run") for name in ("whole", "pieces"))
    assert [row["loss/total"] for row in one] == [row["loss/total"] for row in other]


def test_the_batch_grows_with_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    import gpu_run
    from test_config import minimal

    from rntp.config import Config
    from rntp.training.estimate import Shape, peak_memory

    shape = Shape(134_000_000, 106_000_000, 576, 1536, 30, 49152, 192, True, 576)
    config = Config.parse(minimal())
    found = {}
    for gigabytes in (8, 80):
        monkeypatch.setattr(gpu_run, "total_bytes", lambda device, n=gigabytes: n * 10**9)
        docs = found[gigabytes] = gpu_run.documents(config, shape)
        assert peak_memory(gpu_run.config_of(config, docs), shape) < 0.7 * gigabytes * 1e9
        if docs < gpu_run.MOST_DOCS:
            more = gpu_run.config_of(config, 2 * docs)
            assert peak_memory(more, shape) > 0.7 * gigabytes * 1e9
    assert 1 <= found[8] < found[80]
