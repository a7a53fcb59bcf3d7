"""Which thoughts the page holds, and that no text of them can end the script they stand in."""

import json
from pathlib import Path

import pytest
from fake_run import fake_run

from rntp.report.explorer import (
    MAX_STEPS,
    StepSample,
    choose,
    explorer,
    read_sample,
    script_json,
    shown_steps,
    spread,
)
from rntp.report.runs import load_runs
from rntp.runtime.files import json_lines


def row(advantage: float | None, **more: object) -> dict:
    return {
        "ordinal": 1,
        "document_id": "5f2c",
        "title": "The lamp",
        "position": 9,
        "prefix_tail": "x" * 500,
        "continuation_tokens": [" a", "\n"],
        "gain_per_token": [0.123456, None],
        "thought": "hm",
        "answer": "",
        "closed": True,
        "num_tokens": 3,
        "advantage": advantage,
        "reward": 0.5,
        "gain": 0.25,
        "rewards": {"log_ratio": 0.5},
        **more,
    }


def test_values_are_spread_with_both_ends() -> None:
    assert spread(range(5), 9) == [0, 1, 2, 3, 4]
    assert spread(range(101), 5) == [0, 25, 50, 75, 100]
    assert spread(range(9), 1) == [0]
    assert spread([], 3) == []


def test_the_best_and_the_worst_are_chosen_and_the_rest_evenly() -> None:
    rows = [row(float(n * 37 % 100), thought_index=n) for n in range(100)]
    chosen = choose(rows, 12)
    advantages = [r["advantage"] for r in chosen]
    assert len(chosen) == 12
    assert {0.0, 1.0, 2.0, 97.0, 98.0, 99.0} <= set(advantages)
    # In the order of the file, so that the thoughts of a position stay together.
    assert [r["thought_index"] for r in chosen] == sorted(r["thought_index"] for r in chosen)
    assert choose(rows, 100) == rows
    assert len(choose([row(None)] * 20, 8)) == 8


def test_no_text_ends_the_script() -> None:
    texts = ["</script><script>alert(1)</script>", "<!--<script>", "&lt;", "\u2028\ud800"]
    written = script_json(texts)
    assert json.loads(written) == texts
    assert not set("<>&\u2028\ud800") & set(written)
    with pytest.raises(ValueError, match="Out of range float"):
        script_json(float("nan"))


def test_thoughts_of_a_position_share_its_text_and_have_its_title() -> None:
    rows = [row(1.0), row(-1.0), row(0.5, position=11, title="", rewards={"prob": 0.1})]
    made = explorer([("demo", [StepSample(7, rows, 40)])], 0.5)
    data = json.loads(made.data)
    assert [place["name"] for place in data["places"]] == ["The lamp", "5f2c"]
    assert [thought["place"] for thought in data["thoughts"]] == [0, 0, 1]
    assert data["places"][0]["tokens"] == [" a", "↵"]
    assert len(data["places"][0]["tail"]) == 240
    assert data["schemes"] == ["log_ratio", "prob"]
    assert data["thoughts"][2]["rewards"] == [None, 0.1]
    assert data["thoughts"][0]["gains"] == [0.1235, None]
    assert made.steps == [7]
    assert made.note.startswith("3 of the 40 thoughts of these steps are here")
    assert explorer([("demo", [StepSample(7, rows, 3)])], 0.5).note == ""


def test_of_many_steps_some_are_read_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", steps=200)
    steps = shown_steps(run)
    assert (len(steps), steps[0], steps[-1]) == (MAX_STEPS, 1, 200)
    samples = read_sample(run, 480)
    assert sum(len(sample.rows) for sample in samples) == 480
    assert {sample.total for sample in samples} == {16}
    assert shown_steps(tmp_path) == []


def test_steps_too_large_to_read_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rollouts").mkdir()
    for step in range(1, 21):
        (tmp_path / "rollouts" / f"step_{step:08d}.jsonl").write_bytes(json_lines([row(1.0)] * 20))
    size = (tmp_path / "rollouts" / "step_00000001.jsonl").stat().st_size
    monkeypatch.setattr("rntp.report.explorer._MAX_READ_BYTES", 5 * size)
    assert shown_steps(tmp_path) == [1, 6, 11, 15, 20]
    monkeypatch.setattr("rntp.report.explorer._MAX_READ_BYTES", 1)
    assert shown_steps(tmp_path) == [1, 20]


def test_a_run_holds_a_sample_of_its_thoughts(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (loaded,) = load_runs([run])
    assert [sample.step for sample in loaded.sample] == list(range(1, 25))
    assert sum(len(sample.rows) for sample in loaded.sample) == 24 * 16
