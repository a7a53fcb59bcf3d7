"""Subtrees that read a long root once: outputs and gradients against one softmax in float64."""

import pytest
import torch
from rntp_kernels import Style, TreeAttention, TreeLayout
from rntp_kernels.tree_attention import shared_prefix

HEADS, KV_HEADS, HEAD, SCALE = 6, 2, 16, 0.25
PLAIN = Style()
# Thoughts of different lengths at three places of a page, the last of which reads a continuation.
LAYOUT = TreeLayout((400, 5, 7, 3, 6, 2, 4), (-1, 0, 0, 0, 0, 0, 4), (0, 270, 270, 399, 399, 40, 6))


def leaves(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, LAYOUT.num_tokens, HEAD) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


def found(dtype: torch.dtype, implementation: str) -> list[torch.Tensor]:
    """Output and gradients."""
    *values, weight = leaves(dtype)
    values = [x.requires_grad_() for x in values]
    out = TreeAttention(LAYOUT, implementation=implementation)(0, *values, SCALE, PLAIN)
    (out * weight).sum().backward()
    return [out.detach(), *(x.grad for x in values if x.grad is not None)]


def test_a_long_page_is_read_once_and_gradients_are_those_of_one_softmax(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    attend = shared_prefix.shared_prefix_attention
    monkeypatch.setattr(
        "rntp_kernels.tree_attention.segmented.shared_prefix_attention",
        lambda *operands: calls.append(operands[3].shape) or attend(*operands),
    )
    joined = found(torch.float32, "segmented")
    assert calls == [(2, 1, 7, 7), (2, 1, 10, 10)]  # not the one behind 40 tokens
    exact = found(torch.float64, "dense")
    assert len(calls) == 2
    for one, other in zip(joined, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=2e-5)


def test_every_head_has_the_keys_it_shares() -> None:
    """Keys of one group of heads are exchanged: the other group's outputs stay."""
    q, k, v, _ = leaves(torch.float32)
    attend = TreeAttention(LAYOUT, implementation="segmented")
    before = attend(0, q, k, v, SCALE, PLAIN)
    other = k.clone()
    other[:, 0] = other[:, 0].roll(1, dims=1)
    after = attend(0, q, other, v, SCALE, PLAIN)
    shared = HEADS // KV_HEADS
    assert torch.equal(before[:, shared:], after[:, shared:])
    changed = (before[:, :shared] - after[:, :shared]).abs().amax(dim=3)
    assert float(changed[:, :, LAYOUT.offsets[1] :].min()) > 1e-4


def test_what_it_does_not_have_goes_the_other_way() -> None:
    x = torch.zeros(1, KV_HEADS, 300, HEAD)
    assert shared_prefix.reads_once(x, x, x, PLAIN)
    assert not shared_prefix.reads_once(x, x, x[:, :, :255], PLAIN)
    assert not shared_prefix.reads_once(x.double(), x.double(), x.double(), PLAIN)
    assert not shared_prefix.reads_once(x, x[..., :8], x, PLAIN)
    for style in (Style(window=8), Style(soft_cap=2.0), Style(sinks=torch.zeros(6))):
        assert not shared_prefix.reads_once(x, x, x, style)
