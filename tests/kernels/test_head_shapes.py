"""Scale, bias, soft cap and padding of a head together, in float64, by formula."""

import pytest
import torch
from rntp_kernels import Shaping, linear_logprob_top1
from rntp_kernels.linear_logprob.selection import choose

ROWS, WIDTH, VOCABULARY, KNOWN = 11, 8, 40, 36
SHAPES = {
    "scale": (Shaping(scale=0.125), False),
    "bias": (Shaping(), True),
    "scale and soft cap": (Shaping(soft_cap=4.0, scale=3.0), False),
    "all of them": (Shaping(soft_cap=4.0, vocabulary=KNOWN, scale=0.5), True),
}
WEIGHTS = torch.linspace(-1, 2, ROWS, dtype=torch.float64)


def make(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def values(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    return [
        x.requires_grad_() for x in (values(ROWS, WIDTH), values(VOCABULARY, WIDTH), values(40) * 2)
    ]


TARGETS = torch.arange(ROWS) * 3


def by_formula(h, w, b, shaping: Shaping, has_bias: bool) -> list[torch.Tensor]:
    logits = shaping.scale * (h @ w.T + (b if has_bias else 0))
    if shaping.soft_cap is not None:
        logits = shaping.soft_cap * torch.tanh(logits / shaping.soft_cap)
    logp = torch.log_softmax(logits[:, : shaping.vocabulary or VOCABULARY] / 0.7, -1)
    own = logp.gather(1, TARGETS[:, None])[:, 0]
    return [own, -(logp.exp() * logp).sum(-1), logp.argmax(-1)]


def gradients(logp, entropy, leaves, has_bias: bool) -> tuple[torch.Tensor, ...]:
    loss = (logp * WEIGHTS + 0.7 * entropy).sum()
    return torch.autograd.grad(loss, leaves if has_bias else leaves[:2])


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_values_and_gradients_in_float64(case: str, implementation: str) -> None:
    shaping, has_bias = SHAPES[case]
    leaves = make()
    exact = by_formula(*leaves, shaping, has_bias)
    own = linear_logprob_top1(
        *leaves[:2],
        TARGETS,
        bias=leaves[2] if has_bias else None,
        temperature=0.7,
        shaping=shaping,
        chunk_rows=4,
        implementation=implementation,
    )
    for mine, true in zip(own, exact, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-13)
    for mine, true in zip(
        gradients(*own[:2], leaves, has_bias), gradients(*exact[:2], leaves, has_bias), strict=True
    ):
        torch.testing.assert_close(mine, true, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("implementation", ["chunked-triton", "triton"])
def test_triton_kernels(case: str, implementation: str) -> None:
    pytest.importorskip("triton", reason="triton has no wheel for this platform")
    shaping, has_bias = SHAPES[case]
    if implementation == "triton" and has_bias:
        pytest.raises(ValueError, choose, *make(torch.float32)[:2], "triton", torch.zeros(40))
        return
    leaves = make(torch.float32)
    own = linear_logprob_top1(
        *leaves[:2],
        TARGETS,
        bias=leaves[2] if has_bias else None,
        temperature=0.7,
        shaping=shaping,
        chunk_rows=4,
        implementation=implementation,
    )
    wide = [x.detach().double().requires_grad_() for x in leaves]
    exact = by_formula(*wide, shaping, has_bias)
    assert torch.equal(own[2], exact[2])
    for mine, true in zip(own[:2], exact[:2], strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-4)
    for mine, true in zip(
        gradients(own[0].double(), own[1].double(), leaves, has_bias),
        gradients(*exact[:2], wide, has_bias),
        strict=True,
    ):
        assert (mine.double() - true).norm() < 1e-4 * true.norm()


def test_a_fused_forward_is_not_chosen_where_there_is_a_bias() -> None:
    h, w, b = make(torch.float32)
    with pytest.raises(ValueError, match="'triton' has no bias; use chunked-triton"):
        choose(h, w, "triton", b)


def test_rows_of_padding_have_no_gradient() -> None:
    shaping, _ = SHAPES["all of them"]
    leaves = make()
    logp, entropy, _ = linear_logprob_top1(
        *leaves[:2], TARGETS, bias=leaves[2], shaping=shaping, chunk_rows=4
    )
    _, d_weight, d_bias = gradients(logp, entropy, leaves, True)
    assert float(d_weight[KNOWN:].abs().max()) == float(d_bias[KNOWN:].abs().max()) == 0
    assert float(d_bias[:KNOWN].abs().min()) > 0
