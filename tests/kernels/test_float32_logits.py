"""Logits, log-probs and draws of bfloat16 operands at a real head's size, against float64."""

import threading

import pytest
import torch
from rntp_kernels import Shaping, float32_logits, linear_logprob_top1, sample
from rntp_kernels.linear_logprob import projection
from rntp_kernels.linear_logprob.projection import bfloat16_multiplies
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ROWS, WIDTH, VOCABULARY = 24, 576, 49152  # SmolLM2-135M's head
BOUND = 1e-4  # nats rms; a bfloat16 result is off by 0.03


def operands(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and weights whose logits spread as a language model's do (7 nats rms)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.3
    return hidden.to(dtype), weight.to(dtype)


TARGETS = torch.arange(ROWS) * 2001


def rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def exact_logp(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(hidden.double() @ weight.double().T, -1)


@pytest.mark.parametrize("implementation", ["reference", "chunked", "chunked-triton", "triton"])
@pytest.mark.parametrize("learns", [False, True])
def test_log_probs_at_real_size(
    implementation: str, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "triton" in implementation:
        pytest.importorskip("triton", reason="triton has no wheel for this platform")
        from rntp_kernels.linear_logprob import triton_forward, triton_rows

        # The interpreter takes a while for each tile.
        monkeypatch.setattr(triton_forward, "TILE", {"ROWS": 32, "COLUMNS": 4096, "INNER": 64})
        monkeypatch.setattr(triton_rows, "_BLOCK", 16384)
    hidden, weight = operands()
    logprob, entropy, top1 = linear_logprob_top1(
        hidden.requires_grad_(learns),
        weight.requires_grad_(learns),
        TARGETS,
        chunk_rows=10,
        implementation=implementation,
    )
    assert logprob.requires_grad == learns
    logp = exact_logp(hidden.detach(), weight.detach())
    assert rms(logprob.detach() - logp.gather(1, TARGETS[:, None])[:, 0]) < BOUND
    assert rms(entropy.detach() + (logp.exp() * logp).sum(-1)) < BOUND
    assert torch.equal(top1, logp.argmax(-1))


def test_rounded_logits_would_not_pass() -> None:
    hidden, weight = operands()
    rounded = torch.log_softmax((hidden @ weight.T).float(), -1) - exact_logp(hidden, weight)
    assert 0.005 < rms(rounded) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("piece", [None, 5000 * WIDTH])  # in one piece, and with a rest
def test_logits_in_pieces_with_a_bias(
    dtype: torch.dtype, piece: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if piece is not None:
        monkeypatch.setattr(projection, "_PIECE", piece)
    hidden, weight = operands(dtype)
    bias = torch.linspace(-3, 3, VOCABULARY).to(dtype)
    found = float32_logits(hidden, weight, bias)
    assert found.dtype == torch.float32
    exact = hidden.double() @ weight.double().T + bias.double()
    assert rms(found - exact) < 1e-5
    kept = float32_logits(hidden, weight, bias, weight_float32=weight.float())
    torch.testing.assert_close(kept, found, rtol=0, atol=1e-4)


def test_logits_have_gradients_and_float64_stays() -> None:
    hidden, weight = (x[:40].requires_grad_() for x in operands())
    weights = torch.linspace(-1, 1, 40)
    grads = torch.autograd.grad((float32_logits(hidden, weight) * weights).sum(), (hidden, weight))
    exact = weights.double() @ weight.detach().double()
    assert rms(grads[0] - exact) < 0.01 * rms(exact)
    wide = hidden.detach().double(), weight.detach().double()
    assert torch.equal(float32_logits(*wide), wide[0] @ wide[1].T)
    with pytest.raises(ValueError, match="bfloat16"):
        float32_logits(hidden, weight.float())


def test_gradients_of_bfloat16_operands_are_rounded_only_where_they_are_multiplied() -> None:
    hidden, weight = (x.requires_grad_() for x in operands())
    signs = torch.linspace(-1, 2, ROWS)
    shaping = Shaping(soft_cap=30.0, vocabulary=VOCABULARY - 9)

    def grads(h: torch.Tensor, w: torch.Tensor, name: str) -> tuple[torch.Tensor, ...]:
        logprob, entropy, _ = linear_logprob_top1(
            h, w, TARGETS, shaping=shaping, chunk_rows=10, implementation=name
        )
        return torch.autograd.grad((signs * logprob + 0.1 * entropy).sum(), (h, w))

    wide = (x.detach().double().requires_grad_() for x in (hidden, weight))
    exact = grads(*wide, "reference")  # type: ignore[arg-type]
    for mine, true in zip(grads(hidden, weight, "chunked"), exact, strict=True):
        assert mine.dtype == torch.bfloat16
        # Half of a last bit of bfloat16 is 2^-9 at most, 0.0011 rms.
        assert rms(mine - true) < 0.003 * rms(true)


def test_draws_at_real_size() -> None:
    hidden, weight = operands()
    uniforms = torch.linspace(0.01, 0.99, ROWS, dtype=torch.float64)
    ids, logprob = sample(float32_logits(hidden, weight), uniforms)
    logp = exact_logp(hidden, weight)
    assert rms(logprob - logp.gather(1, ids[:, None])[:, 0]) < BOUND
    cumulative = logp.exp().cumsum(-1)
    assert torch.equal(ids, torch.searchsorted(cumulative, uniforms[:, None])[:, 0])


def test_products_of_others_are_not_rounded() -> None:
    """The setting is the process's: it is put back, whatever happens, and however many ask."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    one = torch.randn(64, 576, generator=torch.Generator().manual_seed(1))
    plain = one @ one.T
    threads = [threading.Thread(target=float32_logits, args=operands()) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(KeyError), bfloat16_multiplies():
        raise KeyError
    assert matmul.fp32_precision == before
    assert torch.equal(one @ one.T, plain)
    float32_logits(*operands(torch.float16))
    assert torch.get_float32_matmul_precision() == "highest"


def test_float16_is_not_multiplied_as_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError

    monkeypatch.setattr(projection, "bfloat16_multiplies", fail)
    hidden, weight = operands(torch.float16)
    assert rms(float32_logits(hidden, weight) - hidden.double() @ weight.double().T) < 1e-5
    with pytest.raises(AssertionError):
        float32_logits(*operands())


def test_on_cuda_the_product_itself_is_asked_for_float32() -> None:
    """By shapes and types alone, so that it needs no GPU."""
    with FakeTensorMode():
        hidden = torch.empty(4, 8, device="cuda", dtype=torch.bfloat16)
        with Products() as seen:
            found = float32_logits(hidden, hidden.new_empty(16, 8), hidden.new_empty(16))
    assert (found.dtype, found.shape) == (torch.float32, (4, 16))
    assert seen.products == [torch.ops.aten.mm.dtype]


class Products(TorchDispatchMode):
    """Lists the matrix products, and which overload of them was called."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[object] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.products.append(function)
        return function(*args, **(kwargs or {}))
