"""`thought.source: policy_or_none`: one thought of each group is closed at once, and may win."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run, write_corpus
from test_config import minimal

from rntp.config import Config
from rntp.evaluation.pages import gains
from rntp.model import load_model
from rntp.model.thought_tree import TokenTree
from rntp.objective.credit import credit
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.interleaved import open_evaluation_engine, open_training_engine
from rntp.rollout.unshared import UnsharedEngine
from rntp.run.log import read_metrics
from rntp.trainer import Trainer
from rntp.types import Context, NextTokenStats, Rollout

SOURCE = "thought.source=policy_or_none"
MEAN = "objective.advantage=group_mean"


def contexts() -> list[Context]:
    draw = torch.Generator().manual_seed(4)
    return [Context(n, f"d{n}", torch.randint(1, 318, (28,), generator=draw)) for n in range(2)]


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (5, 5, 12, 20)  # two rows of thoughts at the first


def groups(rollouts: list[Rollout]) -> list[list[tuple[list[int], list[float]]]]:
    return [
        [(t.sampled_ids.tolist(), t.sampled_logprobs.tolist()) for t in group]
        for rollout in rollouts
        for group in rollout.thoughts
    ]


@pytest.mark.parametrize("kind", ["shared", "fixed shapes", "not shared"])
def test_the_first_of_a_group_is_closed_and_no_other_changes(
    model_folders: dict[str, Path], kind: str
) -> None:
    settings = {"thoughts": 3, "budget": 6, "answer_tokens": 2, "temperature": 0.8, "seed": 2}
    folder = str(model_folders["llama"])
    if kind == "not shared":
        model = load_model(folder, sharing="none")
        engines = [UnsharedEngine(model, or_none=none, **settings) for none in (False, True)]
    else:
        model, fixed = load_model(folder), kind == "fixed shapes"
        engines = [
            InProcessEngine(model, slots=32, fixed_shapes=fixed, or_none=none, **settings)
            for none in (False, True)
        ]
    usual, found = (groups(engine.sample(contexts(), place)) for engine in engines)
    assert len(found) == 8
    for row, (own, other) in enumerate(zip(found, usual, strict=True)):
        first = 0 if row % 4 == 1 else 1  # the second row of a place goes on with its group
        for (ids, logp), (ids_before, logp_before) in zip(own[first:], other[first:], strict=True):
            assert ids == ids_before
            assert logp == pytest.approx(logp_before, abs=1e-6)
        if first:
            [[ids, logp], *_] = own
            assert ids == [model.think_close_id]
            assert ids != other[0][0]
    # With the log-prob that it had, not 0.
    tree = load_model(folder)
    seen = torch.cat([contexts()[0].token_ids[:5], torch.tensor([model.think_open_id])])
    with torch.no_grad():
        logits = tree.logits(TokenTree.build([(seen, -1, 0)]).hidden(tree)[-1:]) / 0.8
    expected = torch.log_softmax(logits[0], -1)[model.think_close_id]
    assert found[0][0][1][0] == pytest.approx(float(expected), abs=1e-4)
    assert -9 < float(expected) < -3


def test_only_training_has_it(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    config = Config.parse(minimal(), [SOURCE])
    training = open_training_engine(model, config).sample(contexts(), place)
    assert {len(t.content) for r in training for t in (r.thoughts[0][0],)} == {0}
    evaluation = open_evaluation_engine(model, config, 4).sample(contexts(), place)
    assert min(len(t.content) for r in evaluation for g in r.thoughts for t in g) > 0


def test_credit_by_hand() -> None:
    """Where none was better than the others it is learnt from, where it was worse it is not."""
    reward_PG = torch.tensor([[0.0, -3.0, 0.0], [0.0, 1.0, 2.0], [0.0, -1.0, 1.0]])
    empty_PH = torch.zeros(3, 2)
    for sets, expected in (
        ([MEAN], [[1.0, -2, 1], [-1.0, 0, 1], [0.0, -1, 1]]),
        ([SOURCE, MEAN], [[1.0, -2, 1], [0.0, 0, 1], [0.0, -1, 1]]),
        (
            [SOURCE, MEAN, "objective.drop_groups_below=0"],
            [[1.0, -2, 1], [0.0, 0, 1], [0.0, -1, 1]],
        ),
        ([SOURCE, "objective.advantage=none"], reward_PG.tolist()),
    ):
        before = reward_PG.clone()
        advantage_PG, counted_P = credit(reward_PG, empty_PH, Config.parse(minimal(), sets))
        torch.testing.assert_close(advantage_PG, torch.tensor(expected))
        assert counted_P.all()
        assert torch.equal(reward_PG, before)  # nothing is floored in place
    # Two rows of a place are one group, and its first thought stands in the first row.
    group_P = torch.tensor([0, 0, 1])
    advantage_PG, _ = credit(
        reward_PG, empty_PH, Config.parse(minimal(), [SOURCE, MEAN]), group_P=group_P
    )
    torch.testing.assert_close(
        advantage_PG, torch.tensor([[0.0, -3, 0], [0.0, 1, 2], [0.0, -1, 1]])
    )


def test_what_has_no_verdict_has_no_advantage() -> None:
    reward_PG = torch.tensor([[0.0, -3.0, 0.0], [0.0, 2.0, 4.0]])
    missing_PG = torch.tensor([[True, False, False], [False, False, True]])
    config = Config.parse(minimal(), [SOURCE, MEAN])
    advantage_PG, _ = credit(reward_PG, torch.zeros(2, 2), config, missing_PG=missing_PG)
    torch.testing.assert_close(advantage_PG, torch.tensor([[0.0, -1.5, 1.5], [0.0, 1.0, 0.0]]))


@pytest.mark.parametrize(("source", "learns"), [("policy_or_none", True), ("policy", False)])
def test_a_policy_learns_not_to_think_where_it_costs(
    model_folders: dict[str, Path], tmp_path: Path, source: str, learns: bool
) -> None:
    """A token costs five nats, and a random model closes one thought in 320 at once."""
    raw = tiny_run(model_folders["llama"], write_corpus(tmp_path / "shards"), tmp_path / "run")
    raw["run"]["steps"] = 30
    raw["model"]["dtype"] = "float32"
    raw["thought"]["source"] = source
    raw["reward"]["scheme"] = {"net_gain": {"token_cost": 5.0}}
    raw["objective"] = {"continuation_weight": 0, "ntp_weight": 0}
    raw["optim"] |= {"lr": 2e-2, "schedule": "constant"}
    raw["evaluation"]["docs"] = 0
    Trainer(Config.parse(raw)).fit()
    rows = read_metrics(tmp_path / "run")
    if learns:
        none = [row["thought/none_frac"] for row in rows]
        assert none[0] < 0.2
        assert sum(none[-3:]) / 3 > 0.9
        assert rows[0]["thought/tokens_mean"] < 4  # the mean of 0, 5 and 5
        assert rows[-1]["thought/tokens_mean"] < 0.3
    else:
        assert "thought/none_frac" not in rows[-1]
        assert rows[-1]["thought/tokens_mean"] > 3


def test_where_it_closed_at_once_it_has_not_thought() -> None:
    thoughts = [
        {"logp_think": [-2.0, -2.5], "closed": True, "num_tokens": 0},
        {"logp_think": [-0.5, -1.0], "closed": True, "num_tokens": 2},
    ]
    at = {"logp_empty": [-1.0, -1.0], "thoughts": thoughts}
    found = gains(at, Config.parse(minimal(), [SOURCE]))
    assert found.tolist() == [[0.0, 0.0], [0.5, 0.0]]
    # Of another policy the empty thought stays in the text.
    assert gains(at, Config.parse(minimal())).tolist() == [[-1.0, -1.5], [0.5, 0.0]]
