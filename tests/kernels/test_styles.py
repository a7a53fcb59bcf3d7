"""Windows, soft caps, sinks, and values narrower than keys, on every path: against formulas, and
trees against the plain sequences that they stand for."""

import itertools
import math

import pytest
import torch
from rntp_kernels import DecodeAttention, Style, TreeAttention, TreeLayout, TwoPasses
from rntp_kernels.tree_attention import PrefixRecorder, dense_mask, selection
from rntp_kernels.tree_attention.style import masked_attention

SCALE = 0.4
HEADS, KV_HEADS = 4, 2
LAYOUT = TreeLayout((23, 6, 4, 5, 3, 9, 2), (-1, 0, 1, 0, 3, -1, 5), (0, 11, 6, 23, 2, 0, 4))
# (window, soft cap, sinks, width of keys, width of values)
KINDS = {
    "window": (6, None, False, 8, 8),
    "window of one": (1, None, False, 8, 8),
    "soft cap": (None, 1.5, False, 8, 8),
    "sinks": (None, None, True, 8, 8),
    "narrow values": (None, None, False, 12, 8),
    "wide values": (None, None, False, 8, 12),
    "all of them": (9, 2.0, True, 12, 8),
}


def values(kind: str, rows: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """q, k, v, sinks, and a gradient of the output."""
    _, _, _, width, of_values = KINDS[kind]
    generator = torch.Generator().manual_seed(3)
    sizes = [(HEADS, width), (KV_HEADS, width), (KV_HEADS, of_values), (HEADS, of_values)]
    q, k, v, d_out = (
        torch.randn(1, heads, rows, n, generator=generator, dtype=torch.float64).to(dtype)
        for heads, n in sizes
    )
    sinks = torch.randn(HEADS, generator=generator, dtype=torch.float64).to(dtype)
    return [*(x.requires_grad_() for x in (q, k, v, sinks)), d_out]


def style(kind: str, sinks: torch.Tensor) -> Style:
    window, soft_cap, has_sinks, _, _ = KINDS[kind]
    return Style(window, soft_cap, sinks if has_sinks else None)


def by_formula(kind: str, q, k, v, sinks) -> torch.Tensor:
    """A plain sequence, row by row and head by head."""
    window, soft_cap, has_sinks, _, of_values = KINDS[kind]
    rows = q.shape[2]
    out = []
    for head, row in itertools.product(range(HEADS), range(rows)):
        own = head // (HEADS // KV_HEADS)
        first = 0 if window is None else max(0, row - window + 1)
        scores = k[0, own, first : row + 1] @ q[0, head, row] * SCALE
        if soft_cap is not None:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        weights = scores.exp()
        total = weights.sum() + (sinks[head].exp() if has_sinks else 0)
        out.append(weights @ v[0, own, first : row + 1] / total)
    return torch.stack(out).view(1, HEADS, rows, of_values)


def gradients(out: torch.Tensor, kind: str, leaves, d_out) -> list[torch.Tensor]:
    wanted = leaves if KINDS[kind][2] else leaves[:3]
    return [out.detach(), *torch.autograd.grad(out, wanted, d_out)]


@pytest.mark.parametrize("kind", KINDS)
def test_one_sequence_by_the_formula_in_float64(kind: str) -> None:
    *leaves, d_out = values(kind, 11)
    mask = dense_mask(TreeLayout((11,), (-1,), (0,)), KINDS[kind][0])
    out = masked_attention(*leaves[:3], mask, SCALE, style(kind, leaves[3]))
    own = gradients(out, kind, leaves, d_out)
    exact = gradients(by_formula(kind, *leaves), kind, leaves, d_out)
    for mine, true in zip(own, exact, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-12, atol=1e-14)


def unshared(kind: str, leaves: list[torch.Tensor], layout: TreeLayout) -> torch.Tensor:
    """Each segment's rows from the plain sequence that ends with it, by the formula."""
    found = []
    for segment, length in enumerate(layout.lengths):
        rows = layout.unshared(segment)
        sequence = [x[:, :, rows] for x in leaves[:3]]
        found.append(by_formula(kind, *sequence, leaves[3])[:, :, -length:])
    return torch.cat(found, dim=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    [
        ("dense", torch.float64, 1e-12),
        ("segmented", torch.float64, 1e-12),
        ("triton", torch.float32, 1e-5),
    ],
)
def test_a_tree_is_its_plain_sequences(
    kind: str, implementation: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Output and gradients, those of the sinks too."""
    if implementation == "triton":
        pytest.importorskip("triton", reason="triton has no wheel for this platform")
    *leaves, d_out = values(kind, LAYOUT.num_tokens)
    exact = gradients(unshared(kind, leaves, LAYOUT), kind, leaves, d_out)
    mine = [x.detach().to(dtype).requires_grad_() for x in leaves]
    attention = TreeAttention(LAYOUT, implementation=implementation)
    out = attention(0, *mine[:3], SCALE, style(kind, mine[3]))
    assert attention.implementation == implementation
    own = gradients(out, kind, mine, d_out.to(dtype))
    for got, true in zip(own, exact, strict=True):
        assert got.shape == true.shape
        # A window of one has a softmax of one key: queries have no gradient.
        assert (got.double() - true).norm() <= tolerance * max(float(true.norm()), 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_two_passes_are_one(kind: str) -> None:
    *leaves, _ = values(kind, LAYOUT.num_tokens)
    layer_style = style(kind, leaves[3])
    whole = TreeAttention(LAYOUT)(0, *leaves[:3], SCALE, layer_style)
    passes = TwoPasses(LAYOUT, 5)
    cut = LAYOUT.offsets[5]
    first = passes.leading(0, *(x[:, :, :cut] for x in leaves[:3]), SCALE, layer_style)
    second = passes.trailing(0, *(x[:, :, cut:] for x in leaves[:3]), SCALE, layer_style)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("by", ["segmented", "triton"])
def test_decoding_is_the_plain_sequence(
    kind: str, fixed: bool, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches of two pages, token by token, against the sequences that they belong to; in fixed
    shapes after branches of different lengths."""
    if by == "triton":
        pytest.importorskip("triton", reason="triton has no wheel for this platform")
    monkeypatch.setenv(selection.OVERRIDE, by)
    window, soft_cap, has_sinks, width, of_values = KINDS[kind]
    if by == "triton" and width == of_values:
        width = of_values = 16  # the widths that the kernel has
        monkeypatch.setitem(KINDS, kind, (window, soft_cap, has_sinks, width, of_values))
    pages, budget = (13, 9), 4
    visible = torch.tensor([[13, 5], [9, 1]])
    layout = TreeLayout(
        (*pages, *[budget] * 4), (-1, -1, 0, 0, 1, 1), (0, 0, *visible.flatten().tolist())
    )
    q, k, v, sinks, _ = (x.detach() for x in values(kind, layout.num_tokens, torch.float32))
    exact = unshared(kind, [x.double() for x in (q, k, v, sinks)], layout)
    layer_style = style(kind, sinks)

    monkeypatch.setenv(selection.OVERRIDE, "segmented")
    recorder = PrefixRecorder(pages, slots=14)
    prefill = recorder(0, *(x[:, :, : sum(pages)] for x in (q, k, v)), SCALE, layer_style)
    torch.testing.assert_close(prefill.double(), exact[:, :, : sum(pages)], rtol=1e-4, atol=1e-5)
    monkeypatch.setenv(selection.OVERRIDE, by)
    attention = DecodeAttention(recorder, visible, budget, fixed=fixed)
    rows = torch.tensor(layout.offsets[2:-1])
    for step in range(budget):
        out = attention(0, *(x[:, :, rows + step] for x in (q, k, v)), SCALE, layer_style)
        torch.testing.assert_close(out.double(), exact[:, :, rows + step], rtol=1e-4, atol=1e-5)
        attention.advance()
    attention.rewind(torch.tensor([[2, 2], [2, 2]]))
    kept = torch.tensor([[1], [0]])  # of each page one branch goes on alone
    narrow = attention.narrowed(kept)
    alone = rows.view(2, 2).gather(1, kept).flatten() + 2
    out = narrow(0, *(x[:, :, alone] for x in (q, k, v)), SCALE, layer_style)
    torch.testing.assert_close(out.double(), exact[:, :, alone], rtol=1e-4, atol=1e-5)
    back = torch.tensor([[1, 3], [2, 0]])  # each branch once more from where it was
    attention.rewind(back)
    again = rows + back.flatten()
    out = attention(0, *(x[:, :, again] for x in (q, k, v)), SCALE, layer_style)
    torch.testing.assert_close(out.double(), exact[:, :, again], rtol=1e-4, atol=1e-5)


def test_what_a_kernel_does_not_have_it_refuses() -> None:
    q, k, v, *_ = values("all of them", LAYOUT.num_tokens, torch.float32)
    with pytest.raises(ValueError, match="'flash' has no windows, soft caps or sinks here"):
        TreeAttention(LAYOUT, implementation="flash")(0, q, k, v, SCALE, Style(soft_cap=2.0))


def test_a_window_as_long_as_the_sequences_is_none() -> None:
    *leaves, _ = values("narrow values", LAYOUT.num_tokens)
    plain = TreeAttention(LAYOUT)(0, *leaves[:3], SCALE)
    longest = max(s + n for s, n in zip(LAYOUT.starts, LAYOUT.lengths, strict=True))
    assert torch.equal(TreeAttention(LAYOUT)(0, *leaves[:3], SCALE, Style(longest)), plain)
    assert not torch.equal(TreeAttention(LAYOUT)(0, *leaves[:3], SCALE, Style(longest - 1)), plain)


def test_a_sink_takes_its_share_of_equal_scores() -> None:
    """Two keys of score 0 and a sink of log 2: half of the weight is nobody's."""
    q, k = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    v = torch.tensor([[[[1.0], [3.0]]]])
    sinks = torch.tensor([math.log(2.0)])
    out = TreeAttention(TreeLayout((2,), (-1,), (0,)))(0, q, k, v, 1.0, Style(sinks=sinks))
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([1 / 3, 4 / 4]))
