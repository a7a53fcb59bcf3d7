"""The Triton head in Triton's interpreter (TRITON_INTERPRET, conftest.py) against the reference."""

from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="triton has no wheel for this platform")

from rntp_kernels import Shaping, linear_logprob_top1
from rntp_kernels.linear_logprob import selection, triton_forward

TILE = {"ROWS": 16, "COLUMNS": 32, "INNER": 16}
TRITON = ["chunked-triton", "triton"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_forward, "TILE", TILE)


def make(rows: int, width: int, vocabulary: int, dtype=torch.float32, scale: float = 1.0):
    generator = torch.Generator().manual_seed(rows * 1000 + vocabulary)
    hidden = (torch.randn(rows, width, generator=generator) * scale).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
    targets = torch.randint(0, vocabulary - 7, (rows,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def outcome(hidden, weight, targets, implementation, **options):
    logprob, entropy, top1 = linear_logprob_top1(
        hidden, weight, targets, implementation=implementation, chunk_rows=11, **options
    )
    signs = torch.linspace(-1, 2, len(targets), dtype=logprob.dtype)
    loss = (logprob * signs).sum() + (entropy * signs.flip(0) * 0.7).sum()
    return logprob, entropy, top1, *torch.autograd.grad(loss, (hidden, weight))


def assert_same(hidden, weight, targets, implementation, tolerance=2e-5, **options) -> None:
    ours = outcome(hidden, weight, targets, implementation, **options)
    wide = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = outcome(*wide, targets, "reference", **options)
    for name, mine, true in zip(
        ("logprob", "entropy", "top1", "d_hidden", "d_weight"), ours, exact, strict=True
    ):
        if name == "top1":
            assert torch.equal(mine, true)
            continue
        error = (mine.double() - true).norm() / true.norm().clamp_min(1e-6)
        assert error < tolerance, f"{name}: {error}"
    assert ours[0].dtype == ours[1].dtype == torch.float32


@pytest.mark.parametrize("implementation", TRITON)
@pytest.mark.parametrize("vocabulary", [64, 97, 131])  # whole tiles; and a last tile that is not
@pytest.mark.parametrize("scale", [0.01, 0.5, 4.0])  # flat, ordinary, peaked
def test_values_and_gradients(implementation: str, vocabulary: int, scale: float) -> None:
    # Odd rows and a width that is no multiple of the tile.
    assert_same(*make(13, 24, vocabulary, scale=scale), implementation, temperature=0.7)


@pytest.mark.parametrize("implementation", TRITON)
def test_soft_cap_and_padding_together(implementation: str) -> None:
    hidden, weight, targets = make(19, 32, 90)
    shaping = Shaping(soft_cap=3.0, vocabulary=85)
    assert_same(hidden, weight, targets, implementation, temperature=1.3, shaping=shaping)
    *_, d_weight = outcome(hidden, weight, targets, implementation, shaping=shaping)
    assert torch.equal(d_weight[85:], torch.zeros(5, 32))


@pytest.mark.parametrize("implementation", TRITON)
def test_no_rows(implementation: str) -> None:
    hidden, weight, targets = make(4, 16, 40)
    none = hidden[:0].detach().requires_grad_()
    logprob, entropy, top1, d_hidden, d_weight = outcome(none, weight, targets[:0], implementation)
    assert logprob.shape == entropy.shape == top1.shape == (0,)
    assert d_hidden.shape == (0, 16)
    assert float(d_weight.abs().sum()) == 0


@pytest.mark.parametrize("implementation", TRITON)
def test_float16_operands(implementation: str) -> None:
    assert_same(*make(9, 16, 70, torch.float16, 0.5), implementation, tolerance=4e-3)


def test_bfloat16_forward_widens_in_the_interpreter() -> None:
    hidden, weight, targets = make(9, 16, 70, torch.bfloat16, 0.5)
    ours, _, _ = linear_logprob_top1(hidden, weight, targets, implementation="triton")
    exact, _, _ = linear_logprob_top1(
        hidden.double(), weight.double(), targets, implementation="reference"
    )
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)


def test_peaked_softmax_keeps_the_targets_gradient() -> None:
    """p = 1 − 1e-3: in bfloat16 p − 1 would be off by a factor of two."""
    hidden = torch.tensor([[1.0] + [0.0] * 15]).requires_grad_()
    weight = torch.zeros(40, 16)
    weight[3, 0] = torch.tensor(0.999 / 0.001 * 39).log()
    logprob, _, _ = linear_logprob_top1(
        hidden, weight.requires_grad_(), torch.tensor([3]), implementation="chunked-triton"
    )
    (d_weight,) = torch.autograd.grad(logprob.sum(), weight)
    assert d_weight[3, 0].item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("shares", [1, 2, 5])
def test_shares_of_the_vocabulary_merge_exactly(shares: int) -> None:
    hidden, weight, targets = make(13, 16, 131)
    inverse = torch.ones(13)
    logprob, entropy, lse, top1 = triton_forward.forward(
        hidden, weight, targets, inverse, Shaping(), tile=TILE, shares=shares
    )
    logits = (hidden @ weight.T).double().detach()
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)
    close(lse.double(), logits.logsumexp(1))
    close(entropy.double(), torch.special.entr(logits.softmax(1)).sum(1))
    close(logprob.double(), logits.log_softmax(1).gather(1, targets[:, None])[:, 0])
    assert torch.equal(top1, logits.argmax(1))


def test_columns_and_rows_of_minus_infinity_are_no_nan() -> None:
    hidden = torch.ones(2, 16)
    weight = torch.zeros(64, 16)
    weight[:40] = float("-inf")  # the first share has nothing but these
    for implementation in TRITON:
        logprob, entropy, top1 = linear_logprob_top1(
            hidden, weight, torch.tensor([50, 60]), implementation=implementation
        )
        torch.testing.assert_close(logprob, -torch.full((2,), 24.0).log())
        torch.testing.assert_close(entropy, torch.full((2,), 24.0).log())
        assert top1.tolist() == [40, 40]


def test_the_check_at_start_passes_while_sampling() -> None:
    selection.self_check.cache_clear()
    with torch.no_grad():
        selection.self_check("chunked-triton", torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_the_check_at_start_passes_and_refuses_a_kernel_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection.self_check.cache_clear()
    selection.self_check("triton", torch.device("cpu"), torch.float32)
    selection.self_check.cache_clear()
    honest = triton_forward.vocabulary
    # Padding that is not masked: a bug that a peer had.
    monkeypatch.setattr(triton_forward, "vocabulary", lambda columns, shaping: columns)
    with pytest.raises(RuntimeError, match="RNTP_LINEAR_LOGPROB=chunked"):
        selection.self_check("triton", torch.device("cpu"), torch.float32)
    monkeypatch.setattr(triton_forward, "vocabulary", honest)
