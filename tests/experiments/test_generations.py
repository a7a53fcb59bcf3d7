"""Thoughts as data, twice over: configs that fit each other, and a table of what is kept."""

import importlib.util
from pathlib import Path

import pytest
import torch

from rntp.ablate.matching import step_cost
from rntp.config import Config

HERE = Path(__file__).parents[2] / "experiments/generations"
spec = importlib.util.spec_from_file_location("generations_run", HERE / "run.py")
assert spec is not None
assert spec.loader is not None
generations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generations)


def test_both_stages_are_configs_of_one_model_and_one_evaluation() -> None:
    draw, learn = (Config.load(HERE / f"{name}.yaml") for name in ("draw", "learn"))
    assert draw.model.spec == learn.model.spec  # each generation begins with the base
    assert learn.thought.thoughts_per_position == 0  # no RL in what learns from thoughts
    assert draw.thought.thoughts_per_position == 8
    for one, other in zip(draw.evaluation, learn.evaluation, strict=True):
        assert one == other or one[0] == "thoughts_per_position"
    # A thought and its markers fit behind the longest page.
    room = learn.data.context_tokens - draw.data.context_tokens
    assert room >= draw.thought.thought_tokens + 2
    assert step_cost("flop", learn) == pytest.approx(step_cost("flop", draw), rel=0.25)


def test_no_learning_leaves_float32_weights() -> None:
    weight = 1e-3
    assert weight - generations.NO_LEARNING != weight  # in float64 it would
    kept = torch.tensor(weight)
    assert torch.equal(kept - generations.NO_LEARNING, kept)


def test_thoughts_that_are_all_the_same_do_not_differ() -> None:
    def page(*groups: list[str]) -> dict:
        return {"positions": [{"thoughts": [{"text": t} for t in group]} for group in groups]}

    same = generations.differing([page(["a", "a"], ["a", "a"])])
    assert same == {"differ_in_group": 0.5, "texts": 0.25}
    mixed = generations.differing([page(["a", "b"]), page(["a", "c"])])
    assert mixed == {"differ_in_group": 1.0, "texts": 0.75}


def test_the_table_has_a_row_a_generation_with_its_spread() -> None:
    def row(seed: int, generation: int, gain: float) -> dict:
        learnt = {key: gain for key, _ in generations.COLUMNS.values()}
        row = {"arm": "RNTP", "seed": seed, "generation": generation, "learnt": learnt}
        return row | {"written": 100 + seed, "teacher": {"gain": 2 * gain}}

    rows = [row(0, 1, 0.5), row(1, 1, 1.0), row(0, 2, 0.25)]
    lines = generations.table(rows).splitlines()
    assert len(lines) == 4
    start = "| RNTP | 1 | 2 | 100 [100, 101] | +1.500 [+1.000, +2.000] | +0.750 [+0.500, +1.000] "
    assert lines[2].startswith(start)
    assert lines[3].startswith("| RNTP | 2 | 1 | 100 | +0.500 | +0.250 | 25% |")
