"""A tiny task of one's own through the real harness; skipped where it is not installed."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import tiny_run
from test_cli import call

pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": "The quick brown", "choices": [" fox", " page"], "answer": n % 2} for n in range(4)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks on four questions: one ranks answers, one wants text, one cannot be done."""
    home = tmp_path / "tasks"
    home.mkdir()
    (home / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(home / "questions.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    ranking = {
        "task": "tiny_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    writing = {
        "task": "tiny_text",
        "output_type": "generate_until",
        "doc_to_target": "fox",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    odd = {
        **writing,
        "task": "tiny_odd",
        "generation_kwargs": {"do_sample": True, "top_k": 5},
    }
    for task in (ranking, writing, odd):
        (home / f"{task['task']}.yaml").write_text(yaml.safe_dump({**shared, **task}))
    return home


def test_a_task_is_scored_without_and_with_thoughts(
    folder: Path,
    model_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_run(model_folders["llama"], corpus, tmp_path / "run")))
    options = ("--tasks-folder", folder, "--json")
    assert call("eval", config, "--tasks", "tiny_choice", *options) == 0
    facts = json.loads(capsys.readouterr().out)
    row = facts["tasks"]["tiny_choice"]["acc"]
    # Half of the same questions have the first answer, half the second.
    assert row["no_think"] == row["think"] == 0.5
    assert row["change"] == 0
    assert facts["thoughts_per_question"] == 1
    assert call("eval", config, "--tasks", "tiny_choice", *options[:2], "--limit", 1) == 0
    table = capsys.readouterr().out
    assert "tiny_choice" in table
    assert "acc" in table

    assert call("eval", config, "--tasks", "tiny_text", *options) == 0
    row = json.loads(capsys.readouterr().out)["tasks"]["tiny_text"]["exact_match"]
    assert row["no_think"] == row["think"] == 0  # a random model says nothing of a fox
    assert call("eval", config, "--tasks", "tiny_odd", *options) == 2
    assert "asks for generation_kwargs top_k" in capsys.readouterr().err
    assert call("eval", config, "--tasks", "tiny_absent", *options) == 2
    assert "knows no task tiny_absent" in capsys.readouterr().err
    assert call("eval", config, "--limit", 3) == 2
