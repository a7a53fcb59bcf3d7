# ruff: noqa: F811
"""Arms of equal tokens or equal FLOPs: the steps of each by hand, and a grid that kept to them."""

import json
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from test_ablate import fake, load, raw, write  # noqa: F401
from test_ablate_runs import experiment  # noqa: F401

from rntp.ablate import Experiment, ablate, dry_run, tabulate
from rntp.ablate.grid import plan
from rntp.ablate.matching import match_lines, matched_steps, step_cost
from rntp.errors import ConfigError
from rntp.run.log import read_metrics
from rntp.trainer import Trainer
from rntp.training.estimate import Shape, full_flop

SHAPE = Shape(parameters=1300, trunk=1000, hidden=10, intermediate=20, layers=2, vocabulary=30)


@pytest.fixture
def matched(raw: dict) -> dict:
    """Three documents of 48 tokens, 2 positions, 3 thoughts of 5 tokens: 144 read, 90 sampled."""
    raw |= {
        "match": "tokens",
        "reference": "as it is",
        "set": {"run.steps": 20},
        "arms": {
            "as it is": None,
            "twice as long": {"thought.thought_tokens": 10},
            "reading": {
                "thought.thoughts_per_position": 0,
                "objective.pg_weight": 0,
                "objective.continuation_weight": 0,
            },
        },
        "controls": ["reading"],
    }
    return raw


def steps(experiment: Experiment) -> dict[str, int]:
    return {run.arm: run.config.run.steps for run in plan(experiment)}


def test_every_arm_spends_the_tokens_of_the_reference(matched: dict) -> None:
    found = load(matched)
    budget = 20 * (144 + 90)
    assert steps(found) == {
        "as it is": 20,
        "twice as long": round(budget / (144 + 180)),  # 14.4
        "reading": round(budget / 144),  # 32.5
    }
    assert steps(found)["twice as long"] == 14
    assert steps(found)["reading"] == 32
    run = plan(found)[2]
    assert "run.steps=14" in run.overrides  # of the command that is run, and written down
    assert len([o for o in run.overrides if o.startswith("run.steps=")]) == 1

    facts = dry_run(found)
    arms = facts["match"]["arms"]
    assert arms["as it is"] == {"steps": 20, "estimated": budget, "share": 1.0}
    assert arms["twice as long"]["estimated"] == 14 * 324
    assert arms["reading"]["share"] == pytest.approx(32 * 144 / budget)
    assert [run["steps"] for run in facts["runs"]] == [20, 20, 14, 14, 32, 32]
    assert (
        "twice as long  14 steps, 4,536 (96.9% of the reference's)"
        in match_lines(facts["match"])[2]
    )
    # Without it every arm has the steps of the file.
    del matched["match"]
    assert set(steps(load(matched)).values()) == {20}
    assert dry_run(load(matched))["match"] is None


def test_an_arm_makes_a_step_however_dear_it_is() -> None:
    assert matched_steps(cost=1000.0, reference_cost=1.0, reference_steps=10) == 1
    assert matched_steps(cost=2.0, reference_cost=3.0, reference_steps=10) == 15


def test_flop_follow_the_formula_of_the_estimate(
    matched: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rntp.ablate.matching._shape", lambda spec, sharing: SHAPE)
    matched["match"] = "flop"
    found = load(matched)
    configs = {run.arm: run.config for run in plan(found)}
    # Six for the trunk and twelve for the head a token of the tree; the sampler two for both.
    reference, reading = configs["as it is"], configs["reading"]
    tree, rows, drawn = 3 * (48 + 6 * (5 + 2 + 3)), 3 * (6 * (5 + 4) + 48), 3 * 6 * 5
    head_row = 2 * 10 * 30
    by_hand = 6 * 1000 * tree + 4 * head_row * rows + (2 * 1000 + head_row) * (144 + drawn)
    assert step_cost("flop", reference) == by_hand / 1e12 == full_flop(reference, SHAPE) / 1e12
    plain = 6 * 1000 * 144 + 4 * head_row * 144
    assert step_cost("flop", reading) == plain / 1e12
    assert reading.run.steps == round(20 * by_hand / plain)
    assert reading.run.steps != steps(load({**matched, "match": "tokens"}))["reading"]


def test_a_model_that_is_not_there_has_no_flop(
    matched: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(spec: str, sharing: str) -> Shape:
        raise OSError(f"no {spec}")

    monkeypatch.setattr("rntp.ablate.matching.Shape.of_spec", absent)
    matched["match"] = "flop"
    with pytest.raises(
        ConfigError, match=r"match: flop needs the shape of model\.spec 'some/model'"
    ):
        plan(load(matched))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"match": "steps"}, "match: .*'tokens' or 'flop'"),
        ({"reference": None}, "match: the arms are matched to the reference; name one"),
    ],
)
def test_what_cannot_be_matched_is_explained(matched: dict, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load({**matched, **change})


def test_an_arm_that_sets_its_own_steps_is_refused(matched: dict) -> None:
    matched["arms"]["twice as long"]["run.steps"] = 21
    with pytest.raises(ConfigError, match=r"twice as long:\n.*sets it to 21 \(the reference: 20\)"):
        plan(load(matched))
    matched["arms"]["twice as long"]["run.steps"] = 20
    assert steps(load(matched))["twice as long"] == 14


def test_an_experiment_like_a_matched_one_keeps_its_match(matched: dict) -> None:
    common = write(matched)
    child = {
        "name": "more",
        "question": "?",
        "like": "rewards.yaml",
        "arms": {"half": {"thought.thought_tokens": 1}},
    }
    path = common.with_name("more.yaml")
    path.write_text(yaml.safe_dump(child))
    found = steps(Experiment.load(path))
    assert found == {**steps(Experiment.load(common)), "half": round(20 * 234 / (144 + 18))}
    for change in ({"match": "flop"}, {"reference": "half"}):
        path.write_text(yaml.safe_dump({**child, **change}))
        with pytest.raises(ConfigError, match=r"would give the arms of that file other run\.steps"):
            Experiment.load(path)


def test_what_was_spent_is_a_column(matched: dict) -> None:
    found = load(matched)
    assert list(found.columns)[-1] == "spent, tokens"
    for run in plan(found):
        fake(run, 0.5, steps=run.config.run.steps)
        rows = read_metrics(run.folder)
        text = "".join(json.dumps({**row, "tokens/spent": 200}) + "\n" for row in rows)
        (run.folder / "metrics.jsonl").write_text(text)
    results = tabulate(found)
    assert [arm["columns"]["spent, tokens"]["mean"] for arm in results["arms"]] == [
        200 * n for n in (20, 14, 32)
    ]
    assert [arm["steps"] for arm in results["arms"]] == [20, 14, 32]
    text = Path("grids/results/rewards/table.md").read_text()
    assert "Every arm makes as many steps as spend the tokens of “as it is”" in text
    assert "6400 [6400, 6400]" in text
    # A column of one's own that reads it is enough.
    matched["columns"]["cost"] = {"metrics": "tokens/spent", "sum": True}
    assert list(load(matched).columns)[-1] == "cost"


def test_runs_spend_alike_and_a_resume_keeps_the_steps(experiment: Path) -> None:
    raw = yaml.safe_load(experiment.read_text())
    reading = {
        "thought.thoughts_per_position": 0,
        "objective.pg_weight": 0,
        "objective.continuation_weight": 0,
    }
    raw |= {
        "match": "tokens",
        "seeds": [0],
        "set": {"run.steps": 4},
        "arms": {"thinking": {}, "reading": reading},
        "controls": [],
        "reference": "thinking",
    }
    experiment.write_text(yaml.safe_dump(raw, sort_keys=False))
    found = Experiment.load(experiment)
    wanted = round(4 * (144 + 90) / 144)  # 6.5
    runs = {run.arm: run for run in plan(found)}
    for run in runs.values():
        Trainer(run.config).fit()
    rows = {arm: read_metrics(run.folder) for arm, run in runs.items()}
    assert [row["step"] for row in rows["reading"]] == list(range(1, wanted + 1))

    said = StringIO()
    results, failure = ablate(found, resume=True, console=Console(file=said, width=200))
    assert failure is None
    assert "matched to “thinking”, tokens by the estimate:" in said.getvalue()
    assert "2 of 2 runs are finished already" in said.getvalue()
    first, second = results["arms"]
    assert (first["steps"], second["steps"]) == (4, wanted)
    drawn = sum(row["tokens/thought"] for row in rows["thinking"])
    assert 0 < drawn <= 4 * 90
    assert first["columns"]["spent, tokens"]["mean"] == 4 * 144 + drawn
    assert second["columns"]["spent, tokens"]["mean"] == wanted * 144
    assert rows == {arm: read_metrics(run.folder) for arm, run in runs.items()}
