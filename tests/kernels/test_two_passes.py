"""A forest in two goes, the second without gradients, against all of it at once."""

import pytest
import torch
from rntp_kernels import TreeAttention, TreeLayout, TwoPasses
from rntp_kernels.tree_attention import dense_attention, dense_mask

SCALE = 0.3
LAYOUTS = {
    # (layout, first segment of the second pass)
    "comb": (
        TreeLayout((37, 18, 3, 9, 5, 3, 4), (-1, 0, 0, 0, 1, 2, 3), (0, 21, 9, 21, 18, 3, 9)),
        4,
    ),
    "ends of the page, and nested": (
        TreeLayout((20, 9, 6, 4, 1, 2), (-1, 0, 1, 0, 2, 4), (0, 17, 5, 20, 6, 1)),
        3,
    ),
    "some branches have none": (TreeLayout((11, 4, 7, 2, 2), (-1, 0, 0, 1, 1), (0, 3, 8, 4, 2)), 3),
    "roots in both": (TreeLayout((5, 16, 33, 7, 2), (-1, -1, 1, -1, 3), (0, 0, 16, 0, 4)), 3),
}
IMPLEMENTATIONS = {"segmented": 1e-6, "dense": 1e-6, "triton": 3e-6}


def make(layout: TreeLayout) -> list[torch.Tensor]:
    """q, k, v and a gradient; two query heads share one of keys."""
    generator = torch.Generator().manual_seed(layout.num_tokens)
    sizes = [(1, heads, layout.num_tokens, 16) for heads in (2, 1, 1, 2)]
    return [torch.randn(size, generator=generator) for size in sizes]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", LAYOUTS)
def test_both_passes_together_are_the_whole(case: str, implementation: str) -> None:
    if implementation == "triton":
        pytest.importorskip("triton", reason="triton has no wheel for this platform")
    (layout, first), bound = LAYOUTS[case], IMPLEMENTATIONS[implementation]
    values = make(layout)
    rows = layout.offsets[first]
    passes = TwoPasses(layout, first, implementation=implementation)
    leaves = [x[:, :, :rows].clone().requires_grad_() for x in values[:3]]
    lead = passes.leading(0, *leaves, SCALE)
    with torch.no_grad():
        trail = passes.trailing(0, *(x[:, :, rows:] for x in values[:3]), SCALE)
    assert not trail.requires_grad

    exact = [x.double().requires_grad_() for x in values[:3]]
    out = dense_attention(*exact, dense_mask(layout), SCALE)
    found = torch.cat([lead, trail], dim=2)
    assert (found - out).norm() < bound * out.norm()
    silent = torch.zeros_like(values[3])
    silent[:, :, :rows] = values[3][:, :, :rows]
    wanted = torch.autograd.grad(out, exact, silent.double())
    gradients = torch.autograd.grad(lead, leaves, values[3][:, :, :rows])
    for mine, true in zip(gradients, wanted, strict=True):
        assert (mine - true[:, :, :rows]).norm() < bound * true.norm()


def test_every_layer_has_its_own_keys_and_they_are_given_back() -> None:
    layout, first = LAYOUTS["comb"]
    q, k, v, _ = make(layout)
    rows = layout.offsets[first]
    passes = TwoPasses(layout, first)
    for layer in (0, 1):
        passes.leading(layer, *((layer + 1) * x[:, :, :rows] for x in (q, k, v)), SCALE)
    for layer in (0, 1):
        own = [(layer + 1) * x for x in (q, k, v)]
        found = passes.trailing(layer, *(x[:, :, rows:] for x in own), SCALE)
        wanted = dense_attention(*own, dense_mask(layout), SCALE)[:, :, rows:]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyError):  # nothing is kept longer than it is needed …
        passes.trailing(0, *(x[:, :, rows:] for x in (q, k, v)), SCALE)
    passes.leading(0, *(x[:, :, :rows] for x in (q, k, v)), SCALE)  # … nor again, in a backward
    with pytest.raises(KeyError):
        passes.trailing(0, *(x[:, :, rows:] for x in (q, k, v)), SCALE)


@pytest.mark.parametrize("implementation", ["segmented", "dense"])
def test_asking_segments_alone(implementation: str) -> None:
    """Whichever segments have queries, and with gradients, apart from the two passes."""
    for layout, _ in LAYOUTS.values():
        q, k, v, d_out = (x.double() for x in make(layout))
        for queries_from in range(len(layout.lengths)):
            first = layout.offsets[queries_from]
            leaves = [q[:, :, first:].clone(), k.clone(), v.clone()]
            exact = [x.clone().requires_grad_() for x in (q, k, v)]
            for leaf in leaves:
                leaf.requires_grad_()
            attend = TreeAttention(layout, implementation=implementation, queries_from=queries_from)
            out = attend(0, *leaves, SCALE)
            wanted = dense_attention(*exact, dense_mask(layout), SCALE)[:, :, first:]
            torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-12)
            mine = torch.autograd.grad(out, leaves, d_out[:, :, first:])
            true = torch.autograd.grad(wanted, exact, d_out[:, :, first:])
            torch.testing.assert_close(mine[0], true[0][:, :, first:], rtol=1e-10, atol=1e-12)
            for a, b in zip(mine[1:], true[1:], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
