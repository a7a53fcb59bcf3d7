"""Sampling kernels in Triton's interpreter (conftest.py) against the reference."""

import pytest
import torch

pytest.importorskip("triton", reason="triton has no wheel for this platform")

import rntp_kernels.sampling as sampling
from rntp_kernels import sample
from rntp_kernels.sampling import triton_sampling


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sampling, "BLOCK", 16)


def both(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0):
    own = sample(logits, uniforms, temperature, implementation="triton")
    return own, sample(logits.double(), uniforms, temperature, implementation="reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("vocabulary", [5, 16, 83])  # less than a block, one, a last one in part
def test_same_tokens_and_log_probs(vocabulary: int, temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (2 * torch.randn(40, vocabulary, generator=generator)).to(dtype)
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    (ids, logprob), (true_ids, true_logprob) = both(logits, uniforms, temperature)
    assert torch.equal(ids, true_ids)
    assert ids.unique().numel() >= min(vocabulary, 4)
    torch.testing.assert_close(logprob.double(), true_logprob, rtol=0, atol=1e-5)
    assert logprob.dtype == torch.float32


def test_every_token_has_its_share_to_both_ends() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0] + [0.0] * 20 + [8.0, 0.0])
    logits = weights.log().expand(160, -1)
    uniforms = (torch.arange(160, dtype=torch.float64) + 0.5) / 160
    ids, logprob = sample(logits, uniforms, implementation="triton")
    for token, weight in enumerate(weights.tolist()):
        assert int((ids == token).sum()) == round(weight * 10)
        if weight:
            share = torch.tensor(weight / 16).log()
            torch.testing.assert_close(logprob[ids == token][0], share)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    ids, _ = sample(logits[:2], ends, implementation="triton")
    assert ids.tolist() == [0, 24]  # never a token of probability 0


def test_rows_do_not_depend_on_each_other_and_may_have_a_stride() -> None:
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(6, 60, generator=generator)
    uniforms = torch.rand(6, generator=generator, dtype=torch.float64)
    together, _ = sample(wide[:, 10:50], uniforms, implementation="triton")
    for row in range(6):
        alone = sample(wide[row : row + 1, 10:50], uniforms[row : row + 1])
        assert int(alone[0]) == int(together[row])
    turned, _ = sample(wide.T.contiguous().T[:, 10:50], uniforms, implementation="triton")
    assert torch.equal(turned, together)
    nothing, _ = sample(wide[:0], uniforms[:0], implementation="triton")
    assert nothing.shape == (0,)


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, uniforms = torch.zeros(2, 5), torch.tensor([0.1, 0.9], dtype=torch.float64)
    calls = []
    honest = triton_sampling.sample_triton
    monkeypatch.setattr(triton_sampling, "sample_triton", lambda *a: calls.append(1) or honest(*a))
    assert sample(logits, uniforms)[0].tolist() == [0, 4]
    assert calls == []  # the CPU has the reference
    monkeypatch.setenv("RNTP_SAMPLING", "triton")
    assert sample(logits, uniforms)[0].tolist() == [0, 4]
    assert calls == [1]
    with pytest.raises(ValueError, match="no float64"):
        sample(logits.double(), uniforms)
    with pytest.raises(ValueError, match="no implementation 'gumbel'"):
        sample(logits, uniforms, implementation="gumbel")


def test_the_check_at_start_passes_and_refuses_a_kernel_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_sampling, "BLOCK", 1024)
    sampling.self_check.cache_clear()
    sampling.self_check(torch.device("cpu"), torch.float32)
    sampling.self_check.cache_clear()
    honest = triton_sampling.sample_triton
    monkeypatch.setattr(
        triton_sampling, "sample_triton", lambda logits, u, t: honest(logits, u, 1.0)
    )
    with pytest.raises(RuntimeError, match="RNTP_SAMPLING=reference"):
        sampling.self_check(torch.device("cpu"), torch.float32)
