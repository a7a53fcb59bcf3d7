"""Inverse transform sampling in two levels against one running sum over the whole vocabulary."""

import pytest
import torch
from rntp_kernels.sampling import sample_reference

LAST = 1 - 2.0**-53  # the largest float64 below 1


def plainly(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float):
    """By the definition, in float64."""
    logp = torch.log_softmax(logits.double() / temperature, dim=-1)
    ends = logp.exp().cumsum(dim=-1)
    ids = (ends <= uniforms[:, None] * ends[:, -1:]).sum(dim=-1)
    return ids, logp.gather(1, ids[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [5, 255, 256, 257, 1000, 49154])
def test_the_token_and_its_log_prob(vocabulary: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (3 * torch.randn(200, vocabulary, generator=generator)).to(dtype)
    before = logits.clone()
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    ids, logprob = sample_reference(logits, uniforms, 0.7)
    true_ids, true_logprob = plainly(logits, uniforms, 0.7)
    assert int((ids != true_ids).sum()) <= (0 if dtype == torch.float64 else 1)  # at a border
    same = ids == true_ids
    assert ids.unique().numel() >= min(vocabulary, 20)
    torch.testing.assert_close(logprob[same].double(), true_logprob[same], rtol=0, atol=2e-5)
    assert logprob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(logits, before)  # the caller's logits are read alone


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_share_of_0_is_never_drawn_even_at_both_ends(dtype: torch.dtype) -> None:
    """Possible tokens: one behind a block of nothing, and one with a block of nothing behind it."""
    logits = torch.full((3, 1100), float("-inf"), dtype=dtype)
    logits[:, 300], logits[:, 511] = 0.0, 1.0
    uniforms = torch.tensor([0.0, 0.5, LAST], dtype=torch.float64)
    ids, logprob = sample_reference(logits, uniforms)
    assert ids.tolist() == [300, 511, 511]
    assert logprob.isfinite().all()


@pytest.mark.slow
def test_small_shares_of_a_large_vocabulary_are_kept() -> None:
    """One token has nearly everything; the 150,000 others come in their places all the same."""
    logits = torch.zeros(1000, 150001)
    logits[:, 0] = 18.0
    share = float(1 / (torch.tensor(18.0, dtype=torch.float64).exp() + 150000))
    start = 1 - 150000 * share
    wanted = torch.arange(1000) * 150 + 1
    uniforms = start + (wanted - 0.5).double() * share
    ids, _ = sample_reference(logits, uniforms)
    assert int((ids - wanted).abs().max()) <= 2
