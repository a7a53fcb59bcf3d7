"""Where thinking pays: the regression by hand, a gate that finds what is there, and its command."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp import Trainer, cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.gate_fit import Measured, fit_gate, judge_gate
from rntp.evaluation.thoughts_cut import cut
from rntp.gate import GainModel, Gate
from rntp.gate.features import SIZE, features
from rntp.gate.gate import FULL
from rntp.model import load_model
from rntp.reader import Reader
from rntp.reader.when import Here, parse_when
from rntp.rollout.engine import InProcessEngine
from rntp.run.export import export
from rntp.types import Context, Thought


def made(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of which two decide about the gain, and 28 do not."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 30, generator=generator, dtype=torch.float64)
    x[:, 0] = 1.0
    gain = 0.1 + 0.5 * x[:, 3] - 0.2 * x[:, 7]
    return x, gain + noise * torch.randn(count, generator=generator, dtype=torch.float64)


def test_the_regression_finds_weights_and_noise() -> None:
    x, gain = made(2000, 0.3)
    model = GainModel.fit(x, gain)
    found = model.weights / model.scale
    expected = torch.zeros(30, dtype=torch.float64)
    expected[3], expected[7] = 0.5, -0.2
    assert torch.allclose(found[1:], expected[1:], atol=0.03)
    assert model.noise == pytest.approx(0.3, abs=0.02)
    others, truth = made(500, 0.0, seed=1)
    mean, error = model.predict(others)
    # The error is that of the estimate: about as large as what it is off by.
    assert float((mean - truth).square().mean()) == pytest.approx(
        float(error.square().mean()), rel=0.6
    )
    assert float(error.mean()) < 0.06


def test_with_little_held_back_it_is_least_squares() -> None:
    x, gain = made(400, 1e-3)
    mean, _ = GainModel.fit(x, gain).predict(x)
    weights = torch.linalg.lstsq(x, gain[:, None]).solution
    assert torch.allclose(mean, (x @ weights)[:, 0], atol=1e-3)


def test_what_cannot_be_foreseen_leaves_the_mean() -> None:
    """The negative case: pure noise is not learnt, where least squares would learn it."""
    x, _ = made(120, 0.0)
    generator = torch.Generator().manual_seed(5)
    gain = -0.2 + torch.randn(120, generator=generator, dtype=torch.float64)
    others, _ = made(400, 0.0, seed=2)
    mean, error = GainModel.fit(x, gain).predict(others)
    assert float((mean - gain.mean()).abs().mean()) < 0.15
    assert float(error.min()) > 0.9 * float(gain.std()) / 120**0.5
    squares = torch.linalg.lstsq(x, gain[:, None]).solution
    assert float(mean.std()) < 0.35 * float((others @ squares).std())
    with pytest.raises(ValueError, match="two gains"):
        GainModel.fit(x[:1], gain[:1])


def test_a_mean_far_from_zero_is_kept() -> None:
    """Held to 0 with the weights, it would pull every estimate towards "thinking gains nothing"."""
    x, _ = made(60, 0.0)
    generator = torch.Generator().manual_seed(6)
    gain = 3.0 + 0.1 * torch.randn(60, generator=generator, dtype=torch.float64)
    mean, _ = GainModel.fit(x, gain).predict(x)
    assert float(mean.mean()) == pytest.approx(3.0, abs=0.08)


def test_features_have_no_scale_of_the_model() -> None:
    hidden = torch.randn(5, 48)
    entropy = torch.tensor([0.0, 1.0, 4.0, 2.0, 0.25])
    found = features(hidden, entropy)
    assert found.shape == (5, SIZE + 3)
    assert torch.allclose(features(hidden * 7, entropy), found, atol=1e-5)
    assert found[:, 2].tolist() == pytest.approx([0.0, 1.0, 2.0, 2**0.5, 0.5])
    big = features(torch.randn(400, 512), torch.zeros(400))[:, 3:]
    assert float(big.square().mean()) == pytest.approx(1.0, rel=0.1)


def test_a_gate_thinks_where_it_pays_and_knows_how_well(tmp_path: Path) -> None:
    x, gain = made(3000, 0.1)
    gate = fit_gate(Measured(x, gain, torch.arange(3000) // 10, tokens=8.0), horizon=4)
    held, truth = made(1000, 0.1, seed=3)
    measured = Measured(held, truth, torch.arange(1000) // 10, tokens=8.0)
    found = judge_gate(gate, measured)
    assert found["auc"] > 0.95
    assert found["documents"] == 100
    assert found["always"] == pytest.approx(float(truth.mean()))
    assert found["best"] == pytest.approx(float(truth.clamp_min(0).mean()))
    assert 0.95 * found["best"] < found["gated"] <= found["best"]
    for row in found["deciles"]:
        assert row["expected"] == pytest.approx(row["measured"], abs=0.08)
    assert sum(row["positions"] for row in found["deciles"]) == 1000
    # A price of 0.1 nats a thought token: 8 tokens want a gain above 0.2 nats a token over 4.
    dear = judge_gate(gate, measured, price=0.1)
    assert dear["thought_at"] == pytest.approx(float((truth > 0.2).double().mean()), abs=0.08)
    gate.save(tmp_path)
    again = Gate.beside(str(tmp_path))
    assert judge_gate(again, measured) == found
    (tmp_path / "gate.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="fit the gate again"):
        Gate.beside(str(tmp_path))


def test_a_gate_that_knows_lengths_thinks_as_long_as_pays(tmp_path: Path) -> None:
    """Two tokens gain where feature 3 is large, eight where feature 7 is; the rest is noise."""
    x, _ = made(3000, 0.0)
    held, _ = made(1000, 0.0, seed=3)

    def measured(x: torch.Tensor) -> Measured:
        short, long = 0.4 * x[:, 3], 0.4 * x[:, 3] + 0.5 * x[:, 7] - 0.1
        return Measured(x, long, torch.arange(len(x)), 8.0, {2: (short, 2.0)})

    gate, others = fit_gate(measured(x), horizon=4), measured(held)
    short, long = others.shorter[2][0], others.gain_N
    free = judge_gate(gate, others)
    assert free["by_length"]["gated"] == pytest.approx(
        float(torch.maximum(short, long).clamp_min(0).mean()), rel=0.02
    )
    assert free["by_length"]["gated"] > 1.1 * free["gated"]
    # At a price the long ones have to gain what their six tokens more cost: 0.15 nats a token.
    dear = judge_gate(gate, others, price=0.1)["by_length"]
    pays = torch.stack([torch.zeros(1000).double(), 4 * short - 0.2, 4 * long - 0.8])
    for name, number in (("2", 1), ("full", 2)):
        expected = float((pays.argmax(dim=0) == number).double().mean())
        assert dear["share"][name] == pytest.approx(expected, abs=0.01)
        assert 0.05 < dear["share"][name] < 0.8
    assert dear["tokens"] < free["by_length"]["tokens"]
    gate.save(tmp_path)
    assert judge_gate(Gate.beside(str(tmp_path)), others) == free


def test_a_thought_that_is_cut_is_what_a_smaller_budget_draws(
    model_folders: dict[str, Path],
) -> None:
    model = load_model(str(model_folders["llama"]))
    page = [Context(0, "d", torch.randint(1, 318, (40,)))]

    def sampled(budget: int) -> list[Thought]:
        engine = InProcessEngine(
            model, thoughts=8, budget=budget, temperature=3.0, seed=1, slots=64
        )
        (rollout,) = engine.sample(page, lambda context, stats: (9, 30))
        return [t for group in cut(rollout, 3).thoughts for t in group]

    for one, other in zip(sampled(7), sampled(3), strict=True):
        assert torch.equal(one.sampled_ids, other.sampled_ids)
        assert one.closed == other.closed
        torch.testing.assert_close(one.sampled_logprobs, other.sampled_logprobs)


def test_the_command_writes_a_gate_that_reading_uses(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 1
    raw["model"]["dtype"] = "float32"
    raw["evaluation"] = {"docs": 1}
    Trainer(Config.parse(raw)).fit()
    run, folder = str(tmp_path / "run"), tmp_path / "model"
    with pytest.raises(SystemExit) as caught:
        cli.main(["gate", run, str(folder)])
    assert caught.value.code == 2
    assert "rntp ckpt export" in capsys.readouterr().err
    export(tmp_path / "run", folder, say=lambda text: None)
    with pytest.raises(ConfigError, match=r"fit one .rntp gate RUN_DIR MODEL."):
        parse_when("gate", str(folder))
    sizes = ["--contexts", "8", "--positions", "4"]
    cli.main(["gate", run, str(folder), *sizes, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["fitted_to"] == 32
    assert found["positions"] >= 20
    assert found["horizon"] == 4
    assert 1 <= found["thought_tokens"] <= 5
    cli.main(["gate", run, str(folder), *sizes])
    assert "AUC" in capsys.readouterr().out
    # Reading by the gate thinks exactly where the gate says, given what reading sees.
    reader, gate = Reader(str(folder)), Gate.beside(str(folder))
    seen: list[tuple[Here, bool | int]] = []
    rule = parse_when("gate:-0.05", str(folder))

    def watched(here: Here) -> bool | int:
        seen.append((here, rule(here)))
        return seen[-1][1]

    page = reader.read("The river rose in the night and the people went up the hill. " * 5, watched)
    assert len(page.thoughts) == sum(said > 0 for _, said in seen)
    for here, said in seen:
        gain, _ = gate.expected(here.hidden[None], here.entropy[None])
        assert said in (0, FULL)
        later = gate.waits(gate.features(here.hidden[None], here.entropy[None]))
        pays = gain * gate.horizon > -0.05 * gate.thought_tokens
        assert (said > 0) == bool(pays & ~later)
    # With lengths: thoughts of a text are as long as the gate says.
    for wrong in ("0", "5", "2,2"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["gate", run, str(folder), *sizes, "--lengths", wrong])
        assert caught.value.code == 2
        assert "numbers of tokens from 1 to 4" in capsys.readouterr().err
    cli.main(["gate", run, str(folder), *sizes, "--lengths", "1,3"])
    assert "as long as pays best" in capsys.readouterr().out
    gate, rule = Gate.beside(str(folder)), parse_when("gate:-0.2", str(folder))
    assert [length.most for length in gate.shorter] == [1, 3]
    seen.clear()
    text = "The river rose in the night and the people went up the hill. " * 5
    page = reader.read(text, watched)
    asked = [said for _, said in seen if said]
    assert len(page.thoughts) == len(asked)
    for thought, most in zip(page.thoughts, asked, strict=True):
        assert len(thought.token_ids) <= min(most, 5)
        assert thought.closed or len(thought.token_ids) == min(most, 5)
    assert reader.price(text, 0.05, least=1) >= 0
    # Writing shows the rule the same hidden state as reading: that of the token before.
    writes: list[Here] = []

    def once(here: Here) -> bool:
        writes.append(here)
        return False

    text = "The river rose in the night and the people went up"
    list(reader.generate(text, once, tokens=1))
    reads: list[Here] = []
    reader.read(text + " the hill. " * 9, lambda here: bool(reads.append(here)))
    assert any(
        torch.allclose(writes[0].hidden, here.hidden, atol=1e-4)
        and torch.allclose(writes[0].entropy, here.entropy, atol=1e-4)
        for here in reads
    )
