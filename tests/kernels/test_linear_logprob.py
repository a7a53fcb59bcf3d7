"""The head against plain autograd: values, both gradients, and the cases where peers went wrong."""

import pytest
import torch
from rntp_kernels import linear_logprob, linear_logprob_top1


def make(rows: int, hidden: int, vocabulary: int, dtype: torch.dtype, scale: float = 1.0):
    generator = torch.Generator().manual_seed(rows * 1000 + vocabulary)
    h = (torch.randn(rows, hidden, generator=generator, dtype=torch.float64) * scale).to(dtype)
    w = torch.randn(vocabulary, hidden, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return h.requires_grad_(), w.requires_grad_(), targets


def gradients(h, w, targets, temperature, implementation, chunk_rows=5):
    logp, entropy = linear_logprob(
        h,
        w,
        targets,
        temperature=temperature,
        chunk_rows=chunk_rows,
        implementation=implementation,
    )
    # Signed, different for every row and for both outputs.
    weights = torch.linspace(-1, 2, len(targets), dtype=logp.dtype)
    loss = (logp * weights).sum() + (entropy * weights.flip(0) * 0.7).sum()
    return logp, entropy, *torch.autograd.grad(loss, (h, w))


@pytest.mark.parametrize("scale", [0.01, 1.0, 20.0])  # flat, ordinary, and peaked to p = 1
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_chunked_equals_autograd_in_float64(temperature: float, scale: float) -> None:
    h, w, targets = make(13, 8, 37, torch.float64, scale)
    ours = gradients(h, w, targets, temperature, "chunked")
    logits = h @ w.T / temperature
    logp = torch.log_softmax(logits, -1)
    entropy = torch.special.entr(logp.exp()).sum(-1)
    torch.testing.assert_close(ours[0], logp.gather(1, targets[:, None])[:, 0])
    torch.testing.assert_close(ours[1], entropy, rtol=1e-10, atol=1e-12)
    reference = gradients(h, w, targets, temperature, "reference")
    for mine, plain in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-10, atol=1e-12)
    assert reference[2].abs().max() > 0 or scale == 20.0


def test_temperature_may_differ_by_row() -> None:
    h, w, targets = make(6, 8, 11, torch.float64)
    temperatures = torch.tensor([0.5, 1.0, 2.0, 1.0, 0.7, 3.0], dtype=torch.float64)
    together, _ = linear_logprob(h, w, targets, temperature=temperatures)
    for row, temperature in enumerate(temperatures.tolist()):
        one = slice(row, row + 1)
        alone, _ = linear_logprob(h[one], w, targets[one], temperature=temperature)
        torch.testing.assert_close(together[one], alone)


def test_outputs_are_float32_for_bfloat16_and_gradients_are_close() -> None:
    h, w, targets = make(40, 32, 500, torch.bfloat16, 0.3)
    ours = gradients(h, w, targets, 1.0, "chunked", chunk_rows=7)
    wide = gradients(
        h.detach().double().requires_grad_(),
        w.detach().double().requires_grad_(),
        targets,
        1.0,
        "reference",
    )
    assert ours[0].dtype == ours[1].dtype == torch.float32
    torch.testing.assert_close(ours[0].double(), wide[0], rtol=0, atol=0.03)
    for mine, exact in zip(ours[2:], wide[2:], strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - exact).norm() / exact.norm() < 0.01


def test_the_ratio_of_identical_policies_is_exactly_one() -> None:
    h, w, targets = make(9, 8, 37, torch.bfloat16)
    first, _ = linear_logprob(h, w, targets, chunk_rows=9)
    second, _ = linear_logprob(h, w, targets, chunk_rows=9)
    assert torch.equal((first - second).exp(), torch.ones(9))


def test_top1_and_tied_logits() -> None:
    h = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    w = torch.tensor([[0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    _, _, top1 = linear_logprob_top1(h, w, torch.tensor([0, 0]))
    assert top1.tolist() == [1, 0]


def test_no_rows() -> None:
    h, w, _ = make(0, 8, 11, torch.float32)
    logp, entropy = linear_logprob(h, w, torch.empty(0, dtype=torch.int64))
    assert logp.shape == entropy.shape == (0,)
    (logp.sum() + entropy.sum()).backward()
    assert h.grad.shape == (0, 8)
    assert torch.equal(w.grad, torch.zeros(11, 8))


def test_logits_of_minus_infinity_are_no_nan() -> None:
    h = torch.tensor([[1.0]], requires_grad=True)
    w = torch.tensor([[0.0], [float("-inf")]])
    logp, entropy = linear_logprob(h, w, torch.tensor([0]))
    assert logp.item() == 0
    assert entropy.item() == 0


def test_shapes_are_checked() -> None:
    h, w, targets = make(4, 8, 11, torch.float32)
    with pytest.raises(ValueError, match="shapes"):
        linear_logprob(h, w[:, :7], targets)
    with pytest.raises(ValueError, match="targets"):
        linear_logprob(h, w, targets[:3])
    with pytest.raises(ValueError, match="bfloat16"):
        linear_logprob(h.bfloat16(), w, targets)
