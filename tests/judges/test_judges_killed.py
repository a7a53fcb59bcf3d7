"""A run that judges drive, killed in a step: the same numbers, and nothing asked twice."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_run
from scripted_server import MODEL, Said, completion, honest, part, serving

from rntp.runtime.files import read_json_lines

AT_ONCE = 4


def by_letters(request: dict[str, Any], number: int) -> str | Said:
    """Knows the truth, takes no attack for right, and grades other answers by their letters."""
    if honest(request, number) == "yes":
        return "yes"
    answer = part(request["messages"][1]["content"], "ANSWER")
    likely = 0.05 + 0.4 * (sum(map(ord, answer)) % 7) / 7
    return Said(completion("no", logprobs={"yes": math.log(likely), "no": math.log(1 - likely)}))


def train(raw: dict[str, Any], url: str, run: Path, fault: str = "") -> int:
    """Run the program; its exit code."""
    settings = {"use": {"a": {"url": url, "model": MODEL}}, "at_once": AT_ONCE}
    reward = {**raw["reward"], "judges": settings}
    config = {**raw, "reward": reward, "run": {**raw["run"], "dir": str(run)}}
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    armed = {"RNTP_FAULT": fault} if fault else {}
    command = [sys.executable, "-m", "rntp", "train", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **armed}
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = read_json_lines(run / "metrics.jsonl")
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "memory/"))} for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "twice"),
    [
        ("update.before#3", 0),
        # Replies that were under way never came: these questions alone are asked again.
        ("rollout#3", AT_ONCE),
    ],
)
def test_killed_in_a_step_it_goes_on_and_asks_nothing_twice(
    point: str, twice: int, model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["thought"]["answer_tokens"] = 4
    raw["evaluation"] = {"docs": 0}
    raw["reward"] |= {"scheme": "judge", "shadows": ["log_ratio"]}
    with serving(by_letters) as server:
        assert train(raw, server.url, tmp_path / "whole") == 0
        whole = len(server.asked)
        server.asked.clear()
        killed = tmp_path / "killed"
        assert train(raw, server.url, killed, f"{point}=kill") == -signal.SIGKILL
        before = set(server.texts())
        assert 20 < len(before) < whole
        assert train(raw, server.url, killed) == 0
        again = len(server.texts()) - len(set(server.texts()))
    assert again <= twice
    assert len(metrics(killed)) == 4
    assert metrics(killed) == metrics(tmp_path / "whole")
