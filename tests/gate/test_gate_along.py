"""A gate that is learnt along with a run: sums that are the same regression, what it says before it
learns, placing by it, checkpoints, and the exported model."""

import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp import placement
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.gate import GainModel, Gate, GateAlong
from rntp.gate.along import LEAST, SHARE
from rntp.gate.features import WIDTH, features
from rntp.gate.moments import Moments
from rntp.model import load_model
from rntp.run import checkpoint
from rntp.run.export import export
from rntp.run.log import read_metrics
from rntp.trainer import Trainer
from rntp.types import Context, Known, Page, PlacementInputs


def made(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features like those of a gate, and gains that one of them decides about."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 40, generator=generator)
    x = features(hidden, torch.rand(count, generator=generator) * 3)
    gain = 0.3 * x[:, 1] - 0.5
    return x, gain + 0.1 * torch.randn(count, generator=generator, dtype=torch.float64)


def page(x: torch.Tensor, ordinal: int = 0) -> Page:
    nothing = torch.zeros(len(x))
    places = tuple(range(3, 3 + len(x)))
    before = torch.zeros(len(x), 2, dtype=torch.int64)
    return Page(ordinal, 0, None, 99, places, before, nothing, nothing, x.float())


def taught(count: int = 300) -> GateAlong:
    along = GateAlong()
    x, gain = made(count)
    for part, own in zip(x.split(30), gain.split(30), strict=True):
        reward = own[:, None].expand(-1, 4)
        along.observe([page(part[:10]), page(part[10:])], reward, reward)
        along.note_lengths(4 * 30 * 5.0, 4 * 30)
    return along


def test_sums_give_the_regression_of_the_rows() -> None:
    x, gain = made(400)
    whole = GainModel.fit(x, gain)
    sums = Moments.of(x[:150], gain[:150]).then(Moments.of(x[150:], gain[150:]), 1.0)
    found = GainModel.of_moments(sums)
    others, truth = made(100, seed=1)
    for one, other in zip(found.predict(others), whole.predict(others), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert found.noise == pytest.approx(0.1, abs=0.01)
    mean, _ = found.predict(others)
    assert float((mean - truth).std()) == pytest.approx(0.1, abs=0.02)
    # What is long ago counts for less: other gains take over.
    other = Moments.of(x, -gain)
    turned = GainModel.of_moments(Moments.of(x, gain).then(other, 0.1))
    expected = (0.1 - 1) / (0.1 + 1)  # of the slope, by weights
    now, before = (model.predict(others)[0] - model.mean for model in (turned, whole))
    assert float(now @ before / (before @ before)) == pytest.approx(expected, abs=0.08)


def test_it_is_judged_by_what_it_has_not_seen() -> None:
    along, (x, gain) = GateAlong(), made(60, seed=3)
    assert along.judge(x, gain) == {}
    assert along.model is None
    assert along.gate(4) is None
    found = taught().judge(x, gain)
    assert found["gate/auc"] > 0.95
    # A normal density of noise 0.1: its entropy, a little more for what is not known for sure.
    ideal = math.log(0.1) + 0.5 * math.log(2 * math.pi * math.e)
    assert ideal - 0.2 < found["gate/loss"] < ideal + 0.3
    assert found["gate/expected"] == pytest.approx(float(gain.mean()), abs=0.03)
    assert found["gate/pays_frac"] == pytest.approx(float((gain > 0).double().mean()), abs=0.1)
    # The negative case: gains that have nothing to do with what it looks at.
    noise = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert abs(taught().judge(x, noise)["gate/auc"] - 0.5) < 0.2
    assert "gate/auc" not in taught().judge(x, gain.abs() + 1)


def test_what_is_long_ago_fades() -> None:
    along = taught(30)
    first = float(along.tensors()["count"])
    assert along.model is None  # fewer than LEAST
    for _ in range(200):
        x, gain = made(30)
        along.observe([page(x)], gain[:, None], gain[:, None])
    assert first == 30
    assert float(along.tensors()["count"]) == pytest.approx(30 / (1 - SHARE), rel=0.02)
    assert LEAST == 50


def test_it_places_where_it_expects_gain_and_elsewhere() -> None:
    along = taught()
    length = 200
    hidden = torch.randn(length, 40, generator=torch.Generator().manual_seed(9))
    entropy = torch.linspace(0, 3, length)
    outlook = Known(entropy, torch.zeros(length), hidden)
    context = Context(5, "d", torch.arange(length))
    drawn = along.of(context, outlook)
    assert torch.equal(drawn, along.of(context, outlook))
    x = features(hidden.roll(1, dims=0), entropy)
    mean, error = along.model.predict(x)
    z = (drawn.double() - mean) / error
    assert abs(float(z.mean())) < 0.25
    assert float(z.std()) == pytest.approx(1, abs=0.15)
    noise = torch.rand(length, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def places(share: float, learned: torch.Tensor) -> tuple[int, ...]:
        inputs = PlacementInputs(
            next_token=outlook, noise_L=noise, learned_L=learned, count=8, random_share=share
        )
        policy = placement.REGISTRY["gate"]
        return placement.place(policy, inputs, min_prefix=10, horizon=4)

    best = set(places(0.0, drawn))
    assert min(best) > 120  # gains go with entropy here
    mixed = set(places(0.25, drawn))
    assert len(mixed & best) >= 6
    anywhere = set(places(1.0, drawn))
    assert anywhere == set(places(0.25, torch.zeros(length)))  # nothing is known yet
    assert set((noise[10:197].topk(2).indices + 10).tolist()) <= mixed


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 6
    raw["data"]["docs_per_step"] = 8
    raw["placement"] |= {"positions_per_doc": 3, "policy": {"gate": {"random_share": 0.4}}}
    raw["model"]["dtype"] = "float32"
    raw["checkpoint"] = {"every_steps": 3, "keep": 9}
    raw["evaluation"] = {"docs": 0}
    return raw


def test_a_run_learns_it_stops_goes_on_to_the_bit_and_exports_it(raw: dict, tmp_path: Path) -> None:
    Trainer(Config.parse(raw)).fit()
    folder = tmp_path / "run"
    rows = read_metrics(folder)
    assert "gate/loss" not in rows[0]
    assert all(math.isfinite(row["gate/loss"]) for row in rows[3:])
    assert 0 <= rows[-1]["gate/pays_frac"] <= 1
    for steps in (3, 6):
        Trainer(Config.parse(raw, [f"run.dir={tmp_path / 'two'}", f"run.steps={steps}"])).fit()
    timed = ("time/", "memory/", "data/damaged")
    for one, other in zip(rows, read_metrics(tmp_path / "two"), strict=True):
        assert {k: v for k, v in one.items() if not k.startswith(timed)} == {
            k: v for k, v in other.items() if not k.startswith(timed)
        }
    last = [sorted((f / "checkpoints").iterdir())[-1] for f in (folder, tmp_path / "two")]
    kept = [checkpoint.load(path, "gate") for path in last]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    # Every group of all steps is in it, with what the model has seen before its position.
    count = sum(8 * 3 * SHARE**n for n in range(6))
    assert float(kept[0]["count"]) == pytest.approx(count)
    assert kept[0]["xx_FF"].shape == (WIDTH, WIDTH)
    out = export(folder, tmp_path / "model", say=lambda text: None)
    gate = Gate.beside(str(out))
    assert gate.horizon == 4
    assert 1 <= gate.thought_tokens <= 5
    assert gate.model.mean == pytest.approx(float(kept[0]["y"] / kept[0]["count"]))


def test_features_are_those_of_the_page_before_the_position(raw: dict, tmp_path: Path) -> None:
    """What the training forward notes is what reading a page gives."""
    raw["run"]["steps"] = 1
    trainer = Trainer(Config.parse(raw))
    noted: list[Page] = []
    observe = trainer.followers.gate.observe

    def watched(pages: list[Page], *rewards: torch.Tensor) -> None:
        noted.extend(pages)
        observe(pages, *rewards)

    trainer.followers.gate.observe = watched  # type: ignore[method-assign]
    first = trainer.corpus.train[0].token_ids
    trainer.fit()
    model = load_model(raw["model"]["spec"])
    model.hf.set_attn_implementation("sdpa")
    with torch.no_grad():
        out = model.hf(first[None], output_hidden_states=True)
    at = torch.tensor(noted[0].positions) - 1
    logp = torch.log_softmax(out.logits[0, at].float(), -1)
    expected = features(out.hidden_states[-1][0, at], -(logp.exp() * logp).sum(-1))
    torch.testing.assert_close(noted[0].features_KF.double(), expected, rtol=1e-3, atol=1e-4)


def test_without_thoughts_there_is_none(raw: dict, tmp_path: Path) -> None:
    raw["run"]["steps"] = 1
    sets = ["thought.thoughts_per_position=0", "objective.pg_weight=0", "placement.policy=random"]
    Trainer(Config.parse(raw, [*sets, "objective.continuation_weight=0"])).fit()
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert checkpoint.has(newest, "alarms")
    assert not checkpoint.has(newest, "gate")
    out = export(tmp_path / "run", tmp_path / "model", say=lambda text: None)
    with pytest.raises(ConfigError, match="has no gate"):
        Gate.beside(str(out))
