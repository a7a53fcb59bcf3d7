"""The loss where continuations are read behind a window: by hand, and however the step is cut."""

from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64
from test_forward import HORIZON, config_of, distance, run, uneven

from rntp.model import LanguageModel, load_model
from rntp.objective.quantities import Counts
from rntp.rollout.engine import InProcessEngine
from rntp.types import Context, Rollout

WEIGHTS = [
    "thought.thoughts_per_position=3",
    "objective.pg_weight=2",
    "objective.continuation_weight=0.5",
    "objective.ntp_weight=0.25",
]


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    loaded = load_model(str(model_folders["llama"]), dtype=torch.float64)
    compute_norms_in_float64(loaded.hf)
    return loaded


@pytest.fixture(scope="module")
def rollouts(model: LanguageModel) -> list[Rollout]:
    generator = torch.Generator().manual_seed(1)
    contexts = [
        Context(n, f"doc{n}", torch.randint(1, 318, (30 - 3 * n,), generator=generator))
        for n in range(3)
    ]
    engine = InProcessEngine(
        model, thoughts=3, budget=6, temperature=1.0, seed=0, slots=32, draw=uneven(model)
    )
    return engine.sample(contexts, lambda c, next_token: (5, len(c) - HORIZON))


@pytest.mark.parametrize("window", [0, 3])
def test_loss_is_the_sum_of_its_parts_by_hand(
    model: LanguageModel, rollouts: list[Rollout], window: int
) -> None:
    config = config_of(f"reading.window={window}", *WEIGHTS)
    total, grads, (outputs,) = run(model, rollouts, config)
    assert outputs.bare_logp_PH is not None
    outputs = outputs.detached()
    reward = (outputs.think_logp_PGH - outputs.no_think_logp_PH[:, None]).sum(-1)
    advantage = (reward - (reward.sum(1, keepdim=True) - reward) / 2).flatten().tolist()
    thoughts = [t for r in rollouts for g in r.thoughts for t in g]
    drawn = [len(t.sampled_ids) for t in thoughts]
    parts = outputs.thought_logp_M.split(drawn)
    pg = -sum(a * float(p.sum()) for a, p in zip(advantage, parts, strict=True)) / sum(drawn)
    # With the memory and without: each its own mean.
    continuation = -float(outputs.think_logp_PGH.mean() + outputs.bare_logp_PH.mean())
    ntp = -float(outputs.context_logp.mean())
    assert total == pytest.approx(2 * pg + 0.5 * continuation + 0.25 * ntp, rel=1e-12)
    assert abs(pg) > 1e-3
    counts = Counts.of(rollouts, HORIZON)
    places, group = 6, 3
    assert counts.head_rows(config) == (
        sum(drawn) + places * group * HORIZON + counts.context + places * HORIZON
    )
    assert counts.learning_rows(config) == counts.head_rows(config)

    for tokens in (1, 200):
        cut, cut_grads, seen = run(model, rollouts, config, tokens)
        assert len(seen) > 1
        assert cut == pytest.approx(total, rel=1e-12)
        assert distance(cut_grads, grads) < 1e-12
    other, other_grads, _ = run(model, rollouts, config_of(*WEIGHTS))
    assert abs(other - total) > 1e-3  # a whole context is another task
    assert distance(other_grads, grads) > 0.1


@pytest.mark.parametrize(
    "options", [[], ["objective.advantage=step"], ["objective.drop_groups_below=0.5"]], ids=str
)
def test_what_has_no_gradients_changes_none(
    model: LanguageModel, rollouts: list[Rollout], options: list[str]
) -> None:
    config = config_of("reading.window=3", "objective.continuation_weight=0", *options)
    total, grads, outputs = run(model, rollouts, config)
    assert all(o.bare_logp_PH is None for o in outputs)
    whole, whole_grads, _ = run(model, rollouts, config, spares=False)
    assert total == pytest.approx(whole, rel=1e-12)
    assert distance(grads, whole_grads) < 1e-11
