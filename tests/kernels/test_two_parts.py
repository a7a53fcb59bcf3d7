"""Attention to a long shared part and a short own one, joined: against one softmax in float64."""

import pytest
import torch
from rntp_kernels import DecodeAttention, Style
from rntp_kernels.tree_attention import two_parts
from rntp_kernels.tree_attention.decode import PrefixRecorder

HEADS, SHARED, HEAD, SCALE = 2, 3, 16, 0.25  # of keys, and queries that share one
PLAIN = Style()


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("differ", [False, True])
def test_both_parts_are_one_softmax(differ: bool) -> None:
    """Two documents of 5 branches, which see from one token to all of it, and some of them less of
    their own tokens than others."""
    branches, slots, tokens = 5, 700, 4
    rows = 3 * normal(2, HEADS, branches, SHARED, HEAD, seed=0)
    keys, values = (normal(2, HEADS, slots, HEAD, seed=s) for s in (1, 2))
    own_keys, own_values = (normal(2, HEADS, branches, tokens, HEAD, seed=s) for s in (3, 4))
    visible = torch.tensor([[700, 3, 1, 512, 33], [13, 699, 600, 2, 128]])
    hidden = torch.arange(slots) >= visible[:, None, :, None]
    bias = torch.zeros(2, 1, branches, slots).masked_fill(hidden, float("-inf"))
    seen = torch.tensor([[4, 1, 2, 3, 4], [1, 4, 4, 2, 3]]) if differ else torch.full((2, 5), 4)
    own_bias = torch.zeros(2, 1, branches, tokens)
    own_bias.masked_fill_(torch.arange(tokens) >= seen[:, None, :, None], float("-inf"))
    wide = bias[:, :, :, None].expand(-1, -1, -1, SHARED, -1).flatten(2, 3)

    found = two_parts.attend_parts(
        rows, (keys, values, wide), (own_keys, own_values, own_bias if differ else None), SCALE
    )

    rows, keys, values = rows.double(), keys.double(), values.double()
    long = torch.einsum("dhbrx,dhnx->dhbrn", rows, keys) * SCALE + bias[:, :, :, None]
    own = torch.einsum("dhbrx,dhbtx->dhbrt", rows, own_keys.double()) * SCALE
    weights = torch.cat([long, own + own_bias[:, :, :, None]], dim=-1).softmax(dim=-1)
    expected = torch.einsum("dhbrn,dhnx->dhbrx", weights[..., :slots], values)
    expected += torch.einsum("dhbrt,dhbtx->dhbrx", weights[..., slots:], own_values.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def decoded(
    monkeypatch: pytest.MonkeyPatch, least: int, slots: int, nearest: int = 5
) -> list[torch.Tensor]:
    """What branches of two pages see, token by token, before and after some of them end."""
    monkeypatch.setattr(two_parts, "_LEAST", least)
    calls = []
    attend = two_parts.attend_parts
    monkeypatch.setattr(
        "rntp_kernels.tree_attention.decode.attend_parts",
        lambda *operands: calls.append(1) or attend(*operands),
    )
    lengths, heads = (slots, slots - 60), HEADS * SHARED
    total = sum(lengths)
    recorder = PrefixRecorder(lengths, slots)
    page = (normal(1, n, total, HEAD, seed=s) for n, s in ((heads, 0), (HEADS, 1), (HEADS, 2)))
    recorder(0, *page, SCALE)
    attention = DecodeAttention(recorder, torch.tensor([[nearest, 300, 9], [40, 41, 2]]), budget=3)
    found = []
    for step in range(3):
        count = 6
        if step == 2:
            attention, count = attention.narrowed(torch.tensor([[1], [2]])), 2
        token = (normal(1, n, count, HEAD, seed=9 * step + n) for n in (heads, HEADS, HEADS))
        found.append(attention(0, *token, SCALE))
        attention.advance()
    assert len(calls) == (0 if least > slots else 3 if nearest else 1)
    return found


def test_decoding_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = decoded(monkeypatch, 512, slots=520)
    apart = decoded(monkeypatch, 10_000, slots=520)
    for one, other in zip(joined, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_branch_that_sees_nothing_of_its_document_is_left_to_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined = decoded(monkeypatch, 512, slots=520, nearest=0)  # it has ended before the third token
    apart = decoded(monkeypatch, 10_000, slots=520, nearest=0)
    for one, other in zip(joined, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_it_does_not_have_goes_the_other_way() -> None:
    rows = torch.zeros(1, HEADS, 600, HEAD)
    assert two_parts.joins(rows, rows, 600, PLAIN)
    assert not two_parts.joins(rows, rows, 511, PLAIN)
    assert not two_parts.joins(rows.double(), rows.double(), 600, PLAIN)
    assert not two_parts.joins(rows, rows[..., :8], 600, PLAIN)
    for style in (Style(window=8), Style(soft_cap=2.0), Style(sinks=torch.zeros(6))):
        assert not two_parts.joins(rows, rows, 600, style)
