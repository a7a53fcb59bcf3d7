"""Gains that small networks foresee: what no line can tell, and what nobody can."""

from pathlib import Path

import pytest
import torch

from rntp.gate import GainModel, GainNet, Gate
from rntp.gate.features import features, wide
from rntp.gate.ranking import auc


def made(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ten numbers; thinking gains 1 where the signs of two differ, and costs 0.5 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 10, generator=generator)
    gain = torch.where(x[:, 3] * x[:, 7] < 0, 1.0, -0.5).double()
    return x, gain + noise * torch.randn(count, generator=generator, dtype=torch.float64)


PAGES = torch.arange(4000) // 20


def test_networks_find_what_no_line_can() -> None:
    x, gain = made(4000, 0.5)
    others, truth = made(1000, 0.0, seed=1)
    net = GainNet.fit(x, gain, PAGES)
    mean, error = net.predict(others)
    line, _ = GainModel.fit(x.double(), gain).predict(others.double())
    helps = truth > 0
    assert auc(mean, helps) > 0.97
    assert auc(line, helps) < 0.6
    # Expected is less than what comes, on either side, and what it cannot know is known.
    for side in (mean > 0.5, mean < 0):
        ratio = float(mean[side].mean()) / float(truth[side].mean())
        assert 0.75 < ratio < 1.05
    assert 0.5 < net.noise < 0.62
    off = (mean - truth).square().mean().sqrt()
    assert 0.2 * off < float(error.mean()) < 1.5 * off
    again, _ = GainNet.fit(x, gain, PAGES).predict(others)
    assert torch.equal(again, mean)


def test_what_cannot_be_foreseen_leaves_the_mean() -> None:
    """The negative case: networks learn any noise by heart, and those pages are not theirs."""
    x, _ = made(1000, 0.0)
    gain = 0.3 + torch.randn(1000, generator=torch.Generator().manual_seed(5)).double()
    mean, _ = GainNet.fit(x, gain, PAGES[:1000]).predict(x)
    assert float(mean.mean()) == pytest.approx(float(gain.mean()), abs=0.02)
    assert float(mean.std()) < 0.1  # where the gains' is 1


def test_one_gain_far_off_does_not_spoil_the_rest() -> None:
    x, gain = made(4000, 0.1)
    gain[::100] = -30.0  # thirty times what thinking is worth, where nothing foretells it
    mean, _ = GainNet.fit(x, gain, PAGES).predict(x)
    assert auc(mean, gain > 0) > 0.75


def test_a_rare_great_harm_that_can_be_foreseen_is() -> None:
    """One place in forty costs eight nats where others of its kind gain one; a robust loss passes
    over them."""
    x, gain = made(4000, 0.1)
    rare = x[:, 5] > 1.96
    gain[rare] = -8.0
    others, truth = made(4000, 0.0, seed=1)
    there = (others[:, 5] > 1.96) & (truth > 0)
    assert 20 < int(there.sum()) < 80
    mean, _ = GainNet.fit(x, gain, PAGES).predict(others)
    assert float((mean[there] < 0).double().mean()) > 0.8
    like_them = (others[:, 5] < 1.5) & (truth > 0)
    assert float((mean[like_them] > 0).double().mean()) > 0.9


def test_pages_that_check_are_other_pages() -> None:
    x, gain = made(60, 0.1)
    with pytest.raises(ValueError, match="two pages"):
        GainNet.fit(x, gain, torch.zeros(60, dtype=torch.int64))
    assert len(GainNet.fit(x, gain, torch.arange(60) // 30).parts[0]) == 2  # one for each
    # Rows of one page are the same: seen in training, they would foretell one another.
    twins = x[:30].repeat_interleave(2, dim=0)
    noise = torch.randn(30, generator=torch.Generator().manual_seed(6)).double()
    gains = noise.repeat_interleave(2)
    by_page, _ = GainNet.fit(twins, gains, torch.arange(60) // 2).predict(twins)
    assert float(by_page.std()) < 0.3 * float(gains.std())


def test_a_gate_keeps_networks_and_sees_the_whole_state(tmp_path: Path) -> None:
    hidden, entropy = torch.randn(400, 12), torch.rand(400)
    gain = torch.where(hidden[:, 0] * hidden[:, 1] < 0, 1.0, -0.5).double()
    gate = Gate(GainNet.fit(wide(hidden, entropy), gain, PAGES[:400]), 4, 8.0)
    gate.save(tmp_path)
    found = Gate.beside(str(tmp_path))
    assert isinstance(found.model, GainNet)
    expected, error = gate.expected(hidden, entropy)
    for mine, kept in zip((expected, error), found.expected(hidden, entropy), strict=True):
        assert torch.equal(mine, kept)
    # The state has no scale of the model; entropy and its root stand in front.
    assert torch.allclose(wide(hidden * 7, entropy), wide(hidden, entropy), atol=1e-5)
    assert torch.equal(wide(hidden, entropy)[:, 0], entropy)
    # A gate that a run has learnt along sees few directions, as before.
    along = Gate(GainModel.fit(features(hidden, entropy), gain), 4, 8.0)
    assert along.features(hidden, entropy).shape[1] != gate.features(hidden, entropy).shape[1] == 14


def test_a_thought_waits_for_the_token_that_it_helps(tmp_path: Path) -> None:
    """Gains of two tokens: where the next one has them, where the one behind has, and both."""
    kind = torch.arange(1200) % 4
    hidden = torch.nn.functional.one_hot(kind, 4).float() + 0.1 * torch.randn(
        1200, 4, generator=torch.Generator().manual_seed(2)
    )
    gain_NH = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [-0.5, -0.5]]).double()[kind]
    x, pages = wide(hidden, torch.ones(1200)), torch.arange(1200) // 10
    gate = Gate(
        GainNet.fit(x, gain_NH.mean(dim=1), pages),
        2,
        8.0,
        next_token=GainNet.fit(x, gain_NH[:, 0], pages),
    )
    gate.save(tmp_path)
    gate = Gate.beside(str(tmp_path))
    waits = gate.waits(x)
    for number, share in enumerate((0.0, 1.0, 0.0, 0.0)):
        assert float(waits[kind == number].double().mean()) == pytest.approx(share, abs=0.02)
    lengths = gate.lengths(hidden, torch.ones(1200))
    for number, thinks in enumerate((True, False, True, False)):
        assert float((lengths[kind == number] > 0).double().mean()) == pytest.approx(
            float(thinks), abs=0.02
        )
    # Where there is no later place it takes what there is, whatever token it helps.
    assert bool((gate.worth(x)[kind == 1] > 0).all())
    assert bool((gate.worth_now(x)[kind == 1] == -torch.inf).all())
    assert torch.equal(gate.worth(x)[kind != 1], gate.worth_now(x)[kind != 1])
    # Without an estimate of the next token, as gates had none: it thinks a token early.
    before = Gate(gate.model, 2, 8.0)
    assert not before.waits(x).any()
    assert bool((before.lengths(hidden, torch.ones(1200))[kind == 1] > 0).all())
