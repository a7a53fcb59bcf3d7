"""The mixing head by itself: closed forms, what it learns, and its file."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file, save_file
from torch import nn

from rntp.errors import ConfigError
from rntp.model import load_model
from rntp.model.mixing import (
    FILE,
    NAME,
    START,
    Mixing,
    mixed_logp,
    mixed_probabilities,
    without_mixing,
)

WIDTH = 12


def test_a_mixture_and_its_gradients_in_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    p0, p1 = torch.rand(2, 40, dtype=torch.float64, generator=generator).clamp_min(1e-3)
    odds = 3 * torch.randn(40, dtype=torch.float64, generator=generator)
    leaves = [x.clone().requires_grad_() for x in (p0.log(), p1.log(), odds)]
    found = mixed_logp(*leaves)
    w = 1 / (1 + (-odds).exp())
    p = (1 - w) * p0 + w * p1
    torch.testing.assert_close(found, p.log(), rtol=1e-12, atol=1e-12)
    found.sum().backward()
    wanted = (1 - w) * p0 / p, w * p1 / p, w * (1 - w) * (p1 - p0) / p
    for leaf, gradient in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-11, atol=1e-13)
    assert torch.autograd.gradcheck(mixed_logp, leaves)
    # The bound: nothing is lost beyond what the weight leaves to the other.
    assert (found.detach() >= p0.log() + torch.log1p(-w)).all()


def test_a_weight_of_0_or_1_is_one_of_the_two() -> None:
    p0, p1 = torch.tensor([0.2, 0.9]).log(), torch.tensor([0.7, 1e-30]).log()
    for odds, wanted in ((-2000.0, p0), (2000.0, p1)):
        a = torch.full((2,), odds, requires_grad=True)
        found = mixed_logp(p0, p1, a)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        found.sum().backward()
        assert torch.isfinite(a.grad).all()


def test_whole_distributions_add_up_to_one_and_agree_with_single_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = 3 * torch.randn(2, 9, 30, generator=generator, dtype=torch.float64)
    odds = torch.randn(9, generator=generator, dtype=torch.float64)
    p = mixed_probabilities(one, other, odds)
    torch.testing.assert_close(p.sum(dim=1), torch.ones(9, dtype=torch.float64))
    each = mixed_logp(one.log_softmax(1), other.log_softmax(1), odds[:, None])
    torch.testing.assert_close(p.log(), each, rtol=1e-10, atol=1e-12)


def test_it_starts_the_same_everywhere_and_is_a_function_of_its_seed() -> None:
    one, again, other = Mixing(WIDTH, 3), Mixing(WIDTH, 3), Mixing(WIDTH, 4)
    h0, h1 = torch.randn(2, 5, WIDTH)
    assert torch.equal(one(h0, h1), torch.full((5,), START))
    assert torch.sigmoid(torch.tensor(START)).item() == pytest.approx(0.1192, abs=1e-4)
    half = Mixing(WIDTH, 3, start=0.0)
    assert torch.equal(half(h0, h1), torch.zeros(5))
    assert torch.equal(half.empty, one.empty)
    assert torch.equal(one.empty, again.empty)
    assert torch.equal(one.think, again.think)
    assert not torch.equal(one.empty, other.empty)
    assert not torch.equal(one.empty, one.think)
    bound = (2 * WIDTH) ** -0.5
    assert 0.9 * bound < float(one.empty.detach().abs().max()) <= bound
    assert Mixing(700).out.shape == (256,)


def test_it_looks_at_both_hidden_states() -> None:
    head = Mixing(WIDTH, 0).double()
    with torch.no_grad():
        head.out.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        head.shift.fill_(0.3)
    h0, h1 = torch.randn(2, 4, WIDTH, dtype=torch.float64)
    units = (h0 @ head.empty.T + h1 @ head.think.T + 0.3).clamp_min(0)
    torch.testing.assert_close(head(h0, h1), START + units @ head.out, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(head(h0, h1), head(h1, h0))
    # [P, 1, H, D] and [P, G, H, D], as trees have them; half precision is computed in float32.
    many = head.bfloat16()(h0[:, None, None].bfloat16(), h1[:, None, None].repeat(1, 3, 2, 1))
    assert many.shape == (4, 3, 2)


@pytest.mark.parametrize("better", [True, False], ids=["better", "worse"])
def test_it_learns_to_trust_thoughts_that_help_and_no_others(better: bool) -> None:
    """p₁ = 0.9 against p₀ = 0.3, or the other way round; and where only some help, which ones."""
    good, bad = torch.tensor(0.9).log(), torch.tensor(0.3).log()
    generator = torch.Generator().manual_seed(0)
    h0, h1 = torch.randn(2, 400, WIDTH, generator=generator)

    def learn(helps: torch.Tensor) -> torch.Tensor:
        head = Mixing(WIDTH, 0)
        adam = torch.optim.Adam(head.parameters(), lr=0.02)
        p0, p1 = torch.where(helps, bad, good), torch.where(helps, good, bad)
        for _ in range(200):
            adam.zero_grad()
            (-mixed_logp(p0, p1, head(h0, h1)).mean()).backward()
            adam.step()
        return head(h0, h1).detach().sigmoid()

    weight = learn(torch.full((400,), better))
    assert (weight > 0.9).all() if better else (weight < 0.05).all()
    if better:
        helps = h1[:, 0] + h0[:, 1] > 0  # both states say it
        weight = learn(helps)
        assert float(weight[helps].mean()) > 0.85
        assert float(weight[~helps].mean()) < 0.1


def test_its_file_lies_beside_the_weights(tmp_path: Path) -> None:
    head = Mixing(WIDTH, 5, start=0.7)
    with torch.no_grad():
        head.out.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    head.save(tmp_path)
    assert sorted(load_file(tmp_path / FILE)) == ["empty", "out", "shift", "start", "think"]
    found = Mixing.beside(str(tmp_path), WIDTH)
    assert found.start == 0.7
    for name, parameter in head.named_parameters():
        assert torch.equal(dict(found.named_parameters())[name], parameter)
    with pytest.raises(ConfigError, match="no mixing head of this model"):
        Mixing.beside(str(tmp_path), WIDTH + 1)
    older = {k: v for k, v in load_file(tmp_path / FILE).items() if k != "start"}
    save_file(older, tmp_path / FILE)
    assert Mixing.beside(str(tmp_path), WIDTH).start == START
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(ConfigError, match="export the run again"):
        Mixing.beside(str(tmp_path), WIDTH)
    (tmp_path / FILE).unlink()
    with pytest.raises(ConfigError, match="has none"):
        Mixing.beside(str(tmp_path), WIDTH)


def test_a_model_has_it_as_a_part_that_comes_off(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    assert model.mixing is None
    with pytest.raises(ConfigError, match="has none"):
        model.add_mixing(None)
    before = model.num_parameters
    model.add_mixing(7)
    assert isinstance(model.mixing, Mixing)
    assert model.num_parameters - before == 2 * 32 * 32 + 2 * 32
    with without_mixing(model.hf):
        assert model.mixing is None
        assert model.num_parameters == before
        assert not any(NAME in name for name in model.hf.state_dict())
    assert torch.equal(model.mixing.empty, Mixing(32, 7).empty)
    plain: nn.Module = tiny_model("llama")
    with without_mixing(plain):  # nothing to take off
        assert not hasattr(plain, NAME)
