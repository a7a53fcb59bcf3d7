"""Tree attention by Triton kernels, in Triton's interpreter (conftest.py), against the oracle.

The layouts are small, the tiles smaller: every loop has whole tiles, a last one, and a diagonal.
"""

from functools import partial

import pytest
import torch

pytest.importorskip("triton", reason="triton has no wheel for this platform")

from rntp_kernels import TreeAttention, TreeLayout
from rntp_kernels.tree_attention import dense_attention, dense_mask, selection, triton_tree
from rntp_kernels.tree_attention.chains import chains
from rntp_kernels.tree_attention.triton_tables import make_tables
from rntp_kernels.tree_attention.triton_tree import Launch, Tiles, TritonTree

SCALE = 0.3
SMALL = Tiles(16, 16, Launch(16, 1, 1), Launch(16, 1, 1), Launch(16, 1, 1))
LAYOUTS = {
    # Two branches at one place, whose keys end inside of a block; a continuation behind each.
    "comb": TreeLayout((37, 18, 3, 5, 3), (-1, 0, 1, 0, 3), (0, 21, 18, 21, 5)),
    "nested": TreeLayout((20, 9, 4, 6, 2), (-1, 0, 1, 1, 3), (0, 17, 9, 5, 4)),
    "sees nothing, and single tokens": TreeLayout(
        (1, 1, 3, 17, 1), (-1, 0, 0, 1, 3), (0, 0, 1, 0, 17)
    ),
    "several roots": TreeLayout((5, 16, 33, 2), (-1, -1, 1, -1), (0, 0, 16, 0)),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tree, "FLOAT32_TILES", SMALL)
    monkeypatch.setattr(triton_tree, "TILES", {64: SMALL, 128: SMALL})


def make(layout: TreeLayout, heads: int, kv_heads: int, head: int = 16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(layout.num_tokens)

    def values(count: int) -> torch.Tensor:
        size = (1, layout.num_tokens, count, head)  # as models make them: heads side by side
        return torch.randn(size, generator=generator).to(dtype).transpose(1, 2)

    q, k, v = (values(n).requires_grad_() for n in (heads, kv_heads, kv_heads))
    return q, k, v, values(heads)


def oracle(layout: TreeLayout, q, k, v, d_out) -> list[torch.Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    out = dense_attention(*leaves, dense_mask(layout), SCALE)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out.double())]


def assert_same(own, exact, tolerance: float = 3e-6) -> None:
    for name, mine, true in zip(("out", "d_q", "d_k", "d_v"), own, exact, strict=True):
        assert true.norm() > 1, name
        error = (mine.double() - true).norm() / true.norm()
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("case", LAYOUTS)
def test_output_and_gradients_of_shared_heads(case: str) -> None:
    layout = LAYOUTS[case]
    q, k, v, d_out = make(layout, heads=2, kv_heads=1)
    out = TreeAttention(layout, implementation="triton")(0, q, k, v, SCALE)
    own = [out, *torch.autograd.grad(out, (q, k, v), d_out)]
    assert_same(own, oracle(layout, q, k, v, d_out))


@pytest.mark.parametrize("rows_per_piece", [16, 24])
def test_keys_that_many_rows_see_are_summed_in_pieces(rows_per_piece: int) -> None:
    layout = LAYOUTS["comb"]
    q, k, v, d_out = make(layout, heads=2, kv_heads=2)
    tables = make_tables(
        layout, queries_per_block=16, keys_per_block=16, rows_per_piece=rows_per_piece
    )
    assert tables.num_slots > len(tables.shared_keys) > 0
    out = TritonTree.apply(q, k, v, tables, SCALE)
    grads = torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)
    assert_same([out, *grads], oracle(layout, q, k, v, d_out))
    again = torch.autograd.grad(out, (q, k, v), d_out)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


def test_float16_and_a_wider_head() -> None:
    layout = LAYOUTS["nested"]
    q, k, v, d_out = make(layout, heads=3, kv_heads=1, head=32, dtype=torch.float16)
    out = TreeAttention(layout, implementation="triton")(0, q, k, v, SCALE)
    assert out.dtype == torch.float16
    own = [out, *torch.autograd.grad(out, (q, k, v), d_out)]
    assert_same(own, oracle(layout, q, k, v, d_out), tolerance=2e-3)


def test_bfloat16_widens_in_the_interpreter() -> None:
    layout = LAYOUTS["several roots"]
    q, k, v, d_out = make(layout, heads=1, kv_heads=1, dtype=torch.bfloat16)
    out = TreeAttention(layout, implementation="triton")(0, q, k, v, SCALE)
    own = [out, *torch.autograd.grad(out, (q, k, v), d_out)]
    assert_same(own, oracle(layout, q, k, v, d_out), tolerance=1e-2)


def test_what_is_not_seen_may_hold_anything() -> None:
    """NaNs and huge numbers in siblings, in the page behind the position and in the last tile's
    neighbours reach neither the output nor a gradient of those who do not see them."""
    layout = LAYOUTS["comb"]
    q, k, v, d_out = make(layout, heads=1, kv_heads=1)
    mask = dense_mask(layout)
    reader = torch.arange(layout.offsets[1], layout.offsets[3])  # the first branch
    hidden = ~mask[reader].any(0)
    assert hidden.sum() == 16 + 8  # the end of the page, the other branch
    clean = oracle(layout, q, k, v, d_out)
    with torch.no_grad():
        for poisoned, poison in ((q, float("nan")), (k, float("nan")), (v, 1e30)):
            poisoned[:, :, hidden] = poison
    out = TreeAttention(layout, implementation="triton")(0, q, k, v, SCALE)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(out[:, :, reader].double(), clean[0][:, :, reader])
    upstream = torch.zeros_like(d_out)
    upstream[:, :, reader] = d_out[:, :, reader]
    d_q, _, _ = torch.autograd.grad(out, (q, k, v), upstream)
    close(d_q[:, :, reader].double(), clean[1][:, :, reader])


def test_a_layout_that_shows_too_much_is_noticed() -> None:
    """The comparison above is no comparison of zeros: one key more changes the output."""
    layout = LAYOUTS["comb"]
    more = TreeLayout(layout.lengths, layout.parents, (0, 22, 18, 21, 5))
    q, k, v, d_out = make(layout, heads=1, kv_heads=1)
    out = TreeAttention(more, implementation="triton")(0, q, k, v, SCALE).detach()
    exact = oracle(layout, q, k, v, d_out)[0]
    branch = slice(layout.offsets[1], layout.offsets[3])
    assert (out - exact)[:, :, branch].abs().max() > 1e-2
    rest = [out[:, :, : layout.offsets[1]], exact[:, :, : layout.offsets[1]].float()]
    torch.testing.assert_close(*rest, rtol=1e-4, atol=1e-5)


def random_layout(seed: int) -> TreeLayout:
    generator = torch.Generator().manual_seed(seed)

    def draw(bound: int) -> int:
        return int(torch.randint(bound, (), generator=generator))

    lengths, parents, attach = [], [], []
    for segment in range(1 + draw(12)):
        lengths.append(1 + draw(40))
        parents.append(draw(segment + 1) - 1)
        whole = parents[-1] >= 0 and draw(2)  # ends of segments are where thoughts go on
        visible = lengths[parents[-1]] if parents[-1] >= 0 else 0
        attach.append(visible if whole else draw(visible + 1))
    return TreeLayout(tuple(lengths), tuple(parents), tuple(attach))


@pytest.mark.parametrize("seed", range(20))
def test_tables_say_what_the_mask_says(seed: int) -> None:
    """Who sees whom by the queries' tables and by the keys', on random forests, without kernels."""
    layout = random_layout(seed)
    size = layout.num_tokens
    tables = make_tables(layout, queries_per_block=8, keys_per_block=16, rows_per_piece=20)
    by_query = torch.zeros(size, size, dtype=torch.int64)
    for first, stop, causal, begin, end in tables.query_blocks.tolist():
        for start, limit in tables.key_runs[begin:end].tolist():
            by_query[first:stop, start:limit] += 1
        for row in range(first, stop):
            by_query[row, causal : row + 1] += 1
    assert torch.equal(by_query, dense_mask(layout).long())

    by_key = torch.zeros(size, size, dtype=torch.int64)
    for first, stop, begin, end, _ in tables.key_pieces.tolist():
        for start, last, limit in tables.query_runs[begin:end].tolist():
            for key in range(first, min(stop, limit)):
                by_key[max(start, key) : last, key] += 1
    assert torch.equal(by_key, dense_mask(layout).long())

    slots = [row[4] for row in tables.key_pieces.tolist() if row[4] >= 0]
    assert sorted(slots) == list(range(tables.num_slots))
    for first, stop, begin, end in tables.shared_keys.tolist():
        own = [row for row in tables.key_pieces.tolist() if row[:2] == [first, stop]]
        assert sorted(row[4] for row in own) == list(range(begin, end))


def test_a_continuation_goes_on_in_its_thoughts_chain() -> None:
    found = chains(LAYOUTS["comb"])
    assert [(s.start, s.stop, s.seen) for s in found] == [
        (0, 37, ()),
        (37, 58, ((0, 21),)),
        (58, 66, ((0, 21),)),
    ]
    answer_beside = TreeLayout((10, 4, 3, 5), (-1, 0, 1, 1), (0, 6, 4, 4))
    assert chains(answer_beside)[-1].seen == ((0, 6), (10, 14))


def test_work_grows_with_what_is_seen_and_not_with_the_square() -> None:
    """Tiles of the forward: 8 positions with 4 branches of 32 tokens on a page of 512."""
    positions = [64 * k for k in range(1, 9)]
    places = [p for p in positions for _ in range(4)]
    layout = TreeLayout((512, *[32] * 32), (-1, *[0] * 32), (0, *places))
    tables = make_tables(layout, queries_per_block=16, keys_per_block=16)
    computed = 0
    for _, stop, causal, begin, end in tables.query_blocks.tolist():
        runs = sum(-(-(b - a) // 16) for a, b in tables.key_runs[begin:end].tolist())
        computed += 256 * (runs + -(-(stop - causal) // 16))
    assert computed <= 1.1 * int(dense_mask(layout).sum())


def test_the_check_at_start_passes_and_refuses_a_kernel_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_tree, "FLOAT32_TILES", Tiles(64, 64, *[Launch(64, 1, 1)] * 3))
    arguments = "triton", torch.device("cpu"), torch.float32, 16, 1
    selection.self_check.cache_clear()
    with torch.no_grad():  # as in a rollout
        selection.self_check(*arguments)
    selection.self_check.cache_clear()
    monkeypatch.setattr(triton_tree, "LOG2_E", 1.45)
    with pytest.raises(RuntimeError, match="RNTP_TREE_ATTENTION=segmented"):
        selection.self_check(*arguments)


def test_what_cannot_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS["several roots"]
    q, k, v, _ = make(layout, heads=1, kv_heads=1)

    def run(implementation: str, *tensors: torch.Tensor) -> torch.Tensor:
        return TreeAttention(layout, implementation=implementation)(0, *tensors, SCALE)

    with pytest.raises(ValueError, match="no implementation 'fast'"):
        run("fast", q, k, v)
    with pytest.raises(ValueError, match="has no float64; use segmented"):
        run("triton", q.double(), k.double(), v.double())
    with pytest.raises(ValueError, match="takes heads of up to 128, not of 144"):
        run("triton", *(torch.cat([x] * 9, dim=3) for x in (q, k, v)))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        run("triton", q, k, v)


def test_the_environment_decides_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = LAYOUTS["several roots"]
    q, k, v, _ = make(layout, heads=1, kv_heads=1)

    def chosen(asked: str = "auto") -> str:
        attention = TreeAttention(layout, implementation=asked)
        attention(0, q, k, v, SCALE)
        return attention.implementation

    assert chosen() == "segmented"
    monkeypatch.setenv("RNTP_TREE_ATTENTION", "dense")
    assert chosen() == "dense"
    assert chosen("segmented") == "segmented"
    monkeypatch.setenv("RNTP_TREE_ATTENTION", "fast")
    with pytest.raises(ValueError, match="RNTP_TREE_ATTENTION"):
        chosen()
