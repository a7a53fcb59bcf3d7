"""Runs on tasks: what they learn, what they record, and what is refused."""

import json
from pathlib import Path

import pytest
from conftest import tiny_run
from many_ranks import run_ranks

from rntp.cli import main
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.during import read_result
from rntp.run.log import read_metrics
from rntp.runtime.ranks import open_ranks
from rntp.show import evaluation_table
from rntp.trainer import Trainer


@pytest.fixture
def raw(model_folders: dict[str, Path], tmp_path: Path) -> dict:
    """A task whose prompts differ and whose answer is always one token of the tiny model."""
    rows = [{"prompt": f"Say it, {n}.", "answer": 9} for n in range(40)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = tiny_run(model_folders["llama"], Path("none"), tmp_path / "run")
    raw["data"] |= {"source": f"task:{tmp_path / 'tasks.jsonl'}", "docs_per_step": 4}
    raw["data"]["tasks"] = {"template": "{prompt}\n{answer}"}
    raw["placement"]["positions_per_doc"] = 1
    raw["thought"] |= {"thoughts_per_position": 8, "thought_tokens": 2, "answer_tokens": 3}
    raw["reward"] = {"scheme": "correct", "horizon": 4, "shadows": ["log_ratio"]}
    raw["model"]["dtype"] = "float32"
    raw["run"]["steps"] = 2
    raw["evaluation"] = {"docs": 6, "thoughts_per_position": 8}
    return raw


def often_said(raw: dict) -> str:
    """What the policy answers most often before it learns: a task that it solves sometimes."""
    Trainer(Config.parse(raw, ["run.steps=1", f"run.dir={raw['run']['dir']}-look"])).fit()
    rows = Path(f"{raw['run']['dir']}-look/rollouts/step_00000001.jsonl").read_text().splitlines()
    said = [json.loads(row)["answer"].strip() for row in rows]
    plain = [text for text in said if text.isascii() and text.isprintable() and text]
    return max(plain, key=plain.count)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "weight"), [("correct", 0), ("log_ratio", 1), ("random", 0)])
def test_a_policy_learns_to_answer(raw: dict, tmp_path: Path, scheme: str, weight: float) -> None:
    """By the verifier alone; by the likelihood of the true answer (VeriFree's gradient: thoughts by
    their reward, the answer by its log-prob); and not by a random reward."""
    raw["thought"] |= {"answer_tokens": 1, "temperature": 0.6}
    raw["objective"] = {"continuation_weight": weight, "ntp_weight": 0}
    answer = often_said(raw)
    rows = [{"prompt": f"Say it, {n}.", "answer": answer} for n in range(40)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw["optim"] = {"lr": 3e-3, "warmup_steps": 1}
    raw["data"]["docs_per_step"] = 8
    found = Trainer(Config.parse(raw, ["run.steps=40", f"reward.scheme={scheme}"])).fit()
    row = found["tasks/pass_at_1"]
    assert 0.02 < row["before"] < 0.5
    if scheme == "random":
        assert row["change"] < 0.2
    else:
        assert row["change"] > 0.3
        assert row["ci95"][0] > 0.2


def test_what_is_recorded(raw: dict) -> None:
    config = Config.parse(raw, ["reward.scheme={correct: 1, format_only: 0.1, random: 0.1}"])
    found = Trainer(config).fit()
    assert found["tasks/pass_at_1"]["before"] == found["tasks/pass_at_1"]["after"] == 0
    metrics = read_metrics(config.run.dir)[-1]
    assert {m: metrics[m] for m in ("task/pass_rate", "task/solved_frac", "task/mixed_frac")} == {
        "task/pass_rate": 0,
        "task/solved_frac": 0,
        "task/mixed_frac": 0,
    }
    assert 0 < metrics["reward/random"] < 1
    assert abs(metrics["gain/mean"]) > 0
    [row, *_] = (config.run.dir / "rollouts/step_00000001.jsonl").read_text().splitlines()
    row = json.loads(row)
    assert (row["truth"], row["score"], row["continuation"]) == ("9", 0, "9<|end|>")
    assert len(row["gain_per_token"]) == len(row["continuation_tokens"]) == 2
    result = read_result(config, 2)
    assert result is not None
    assert [at["k"] for at in result["tasks"]["pass_at"]] == [1, 2, 4, 8]
    for page in result["pages"]:
        [at] = page["positions"]
        assert {len(at["logp_empty"]), *(len(t["logp_think"]) for t in at["thoughts"])} == {2}
        assert page["task"]["answer"] == "9"
    said = (config.run.dir / "log.txt").read_text()
    assert "40 tasks of" in said
    assert "held-out tasks (6): pass@1 0.0% [0.0%, 0.0%], pass@8 0.0%" in said
    main(["report", str(config.run.dir)])
    page = (config.run.dir / "report.html").read_text()
    assert "tasks that some attempt solves" in page
    assert "Of 6 held-out tasks an attempt solved 0.0% before training and 0.0% after it" in page
    table = evaluation_table(result)
    assert "6 tasks, 8 attempts at each" in table
    assert "pass@8                     0.000   [+0.000, +0.000]" in table


def solve(raw: dict) -> None:
    config = Config.parse(raw)
    with open_ranks(config) as ranks:
        Trainer(config, ranks=ranks).fit()


@pytest.mark.slow
def test_two_ranks_record_the_pass_rate_of_both(raw: dict, tmp_path: Path) -> None:
    raw["thought"] |= {"answer_tokens": 1, "temperature": 0.6}
    answer = often_said(raw)
    rows = [{"prompt": f"Say it, {n}.", "answer": answer} for n in range(40)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = {**raw, "run": {**raw["run"], "dir": str(tmp_path / "alone")}}
    Trainer(Config.parse(alone)).fit()
    ends = run_ranks(2, tmp_path / "ranks", solve, raw)
    assert [rank.exit_code for rank in ends] == [0, 0], ends[0].output
    one, two = (read_metrics(Path(r["run"]["dir"]))[0] for r in (alone, raw))
    assert one["task/pass_rate"] > 0
    for key in ("task/pass_rate", "task/solved_frac", "task/mixed_frac", "data/digest"):
        assert one[key] == two[key]


def test_without_answers_likelihood_rewards_train_all_the_same(raw: dict) -> None:
    config = Config.parse(raw, ["thought.answer_tokens=0", "reward.scheme=mean_prob"])
    found = Trainer(config).fit()
    assert "tasks/pass_at_1" not in found
    metrics = read_metrics(config.run.dir)[-1]
    assert not [key for key in metrics if key.startswith("task/")]
    assert metrics["group/reward_std"] > 0


@pytest.mark.slow
def test_prompts_and_answers_alone_are_supervised_learning(raw: dict) -> None:
    """No thoughts: the next-token loss over prompt and answer, which learns the answer."""
    more = ["thought.thoughts_per_position=0", "thought.answer_tokens=0", "run.steps=30"]
    weights = ["objective.pg_weight=0", "objective.continuation_weight=0", "objective.ntp_weight=1"]
    config = Config.parse(raw, [*more, *weights, "reward.scheme=log_ratio", "optim.lr=0.01"])
    found = Trainer(config).fit()
    assert found["nll/no_think"]["change"] < -2


def test_the_verifier_wants_tasks_and_answers(raw: dict, corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.tasks says how tasks are read, and data\.source"):
        Trainer(Config.parse(raw, [f"data.source={corpus}"]))
    with pytest.raises(ConfigError, match=r"correct grades an answer, and thought\.answer_tokens"):
        Trainer(Config.parse(raw, ["thought.answer_tokens=0"]))
