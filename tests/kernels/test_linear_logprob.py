"""The head against plain autograd: values, both gradients, and the cases where peers went wrong."""

import pytest
import torch
from rntp_kernels import Shaping, linear_logprob, linear_logprob_top1
from rntp_kernels.linear_logprob import default_chunk_rows
from rntp_kernels.linear_logprob import rows as row_kernels
from rntp_kernels.linear_logprob.selection import choose
from torch.utils._python_dispatch import TorchDispatchMode


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
    torch.testing.assert_close(ours[0].double(), wide[0], rtol=0, atol=1e-5)
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


def test_soft_cap_and_padding_against_autograd() -> None:
    h, w, targets = make(11, 8, 40, torch.float64, 3.0)
    targets = targets % 36
    shaping = Shaping(soft_cap=4.0, vocabulary=36)
    logits = 4.0 * torch.tanh(h @ w.T / 4.0) / 1.7
    logp = torch.log_softmax(logits[:, :36], -1)
    weights = torch.linspace(-1, 2, 11, dtype=torch.float64)
    own = logp.gather(1, targets[:, None])[:, 0]
    entropy = -(logp.exp() * logp).sum(-1)
    true = torch.autograd.grad((own * weights + 0.7 * entropy).sum(), (h, w))
    for implementation in ("chunked", "reference"):
        ours, ent = linear_logprob(
            h,
            w,
            targets,
            temperature=1.7,
            shaping=shaping,
            chunk_rows=4,
            implementation=implementation,
        )
        torch.testing.assert_close(ours, own)
        torch.testing.assert_close(ent, entropy)
        found = torch.autograd.grad((ours * weights + 0.7 * ent).sum(), (h, w))
        for mine, exact in zip(found, true, strict=True):
            torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)


def test_names_of_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    h, w, targets = make(4, 8, 11, torch.float32)
    with pytest.raises(ValueError, match="no implementation 'fast'"):
        linear_logprob(h, w, targets, implementation="fast")
    monkeypatch.setenv("RNTP_LINEAR_LOGPROB", "nonsense")
    with pytest.raises(ValueError, match="RNTP_LINEAR_LOGPROB"):
        linear_logprob(h, w, targets)
    monkeypatch.setenv("RNTP_LINEAR_LOGPROB", "reference")
    assert choose(h, w, "auto") == "reference"
    monkeypatch.delenv("RNTP_LINEAR_LOGPROB")
    assert choose(h, w, "auto") == "chunked"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"CUDA tensors|needs triton"):
        linear_logprob(h, w, targets, implementation="triton")
    with pytest.raises(ValueError, match=r"no float64|needs triton"):
        linear_logprob(h.double(), w.double(), targets, implementation="triton")


@pytest.mark.parametrize("chunk_rows", [16, 64])
def test_memory_is_that_of_one_chunk_whatever_the_rows(chunk_rows: int) -> None:
    """Counted, not sampled: the largest tensor that forward and backward make."""

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.found = max(self.found, tensor.numel())
            return out

    largest = []
    for rows in (128, 512):
        h, w, targets = make(rows, 8, 300, torch.float32)
        with Largest() as mode:
            logp, entropy = linear_logprob(h, w, targets, chunk_rows=chunk_rows)
            (logp + entropy).sum().backward()
        largest.append(mode.found)
    assert largest == [chunk_rows * 300] * 2


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_a_large_slope_of_the_entropy_meets_a_probability_of_zero(implementation: str) -> None:
    h, w, targets = make(3, 8, 11, torch.float32)
    shaping = Shaping(vocabulary=9)
    _, entropy = linear_logprob(h, w, targets % 9, shaping=shaping, implementation=implementation)
    d_hidden, d_weight = torch.autograd.grad(100 * entropy.sum(), (h, w))
    exact = torch.special.entr((h @ w[:9].T).softmax(-1)).sum()
    torch.testing.assert_close(
        d_hidden, 100 * torch.autograd.grad(exact, h)[0], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(d_weight[9:], torch.zeros(2, 8))


def test_a_second_backward_through_the_same_forward_is_the_first() -> None:
    """The first one writes its gradient over the logits that the forward kept."""
    h, w, targets = make(11, 8, 40, torch.float64)
    logp, entropy = linear_logprob(h, w, targets, chunk_rows=4)
    loss = (logp * torch.linspace(-1, 2, 11) + 0.7 * entropy).sum()
    first = torch.autograd.grad(loss, (h, w), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, (h, w)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("chunk_rows", [4, 50])  # logits computed again, and those of the forward
def test_rows_without_gradient_are_left_out_of_the_backward(
    chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    h, w, targets = make(20, 8, 37, torch.float64)
    upstream = torch.linspace(-1, 2, 20, dtype=torch.float64)
    upstream[[0, 3, 4, 5, 6, 7, 8, 19]] = 0
    entropic = torch.zeros(20, dtype=torch.float64)
    entropic[[4, 12]] = 0.3  # one of the rows has this gradient alone
    honest, seen = row_kernels.logit_gradient, []

    def counted(logits: torch.Tensor, *more) -> torch.Tensor:
        seen.append(len(logits))
        return honest(logits, *more)

    monkeypatch.setattr(row_kernels, "logit_gradient", counted)

    def grads(drop: bool | None) -> tuple[torch.Tensor, ...]:
        seen.clear()
        logp, entropy, _ = linear_logprob_top1(
            h, w, targets, chunk_rows=chunk_rows, drop_zero_rows=drop
        )
        return torch.autograd.grad((logp * upstream + entropy * entropic).sum(), (h, w))

    whole = grads(None)
    assert sum(seen) == 20  # on the CPU the order of sums stays as it is
    dropped = grads(True)
    assert sum(seen) == 13
    for mine, plain in zip(dropped, whole, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-14)
    assert torch.equal(dropped[0][[0, 3, 5]], torch.zeros(3, 8, dtype=torch.float64))
    upstream.zero_()
    entropic.zero_()
    assert all(float(g.abs().sum()) == 0 for g in grads(True))
    assert seen == []


def test_a_gpu_holds_larger_chunks() -> None:
    assert default_chunk_rows(torch.device("cuda")) == 4096
    assert default_chunk_rows(torch.device("cpu")) == 2048
