"""Tree attention by Triton kernels as one differentiable function."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rntp_kernels.tree_attention import triton_kernels as kernels
from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.selection import HEADS
from rntp_kernels.tree_attention.style import PLAIN, Style
from rntp_kernels.tree_attention.triton_tables import Tables, make_tables

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Launch:
    """Size of the step of a kernel's loop, warps, stages of loads."""

    step: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """queries, keys: rows of a block of each. The others: the kernels' loops over the other side.

    Chosen by compiling for sm_90 (tests/kernels/test_triton_tree.py): no spills, and small blocks
    of queries, because thoughts are short and a block lies in one of them.
    """

    queries: int
    keys: int
    forward: Launch
    query_gradient: Launch
    key_gradient: Launch

    def forward_of(self, styled: bool) -> Launch:
        """Pick the forward's launch; styled: with a window and a soft cap, whose registers do not
        suffice for longer steps."""
        return replace(self.forward, step=min(64, self.forward.step)) if styled else self.forward


TILES = {
    64: Tiles(64, 128, Launch(128, 4, 3), Launch(64, 4, 3), Launch(64, 8, 3)),
    128: Tiles(64, 128, Launch(64, 4, 3), Launch(32, 4, 3), Launch(32, 8, 3)),
}
# Three products of TF32 each, for checks: what fits into shared memory, at any speed.
FLOAT32_TILES = Tiles(64, 64, Launch(64, 4, 1), Launch(32, 4, 1), Launch(32, 4, 1))


def tiles_for(x: Tensor) -> Tiles:
    """Pick the tiles for queries or keys [1, heads, N, D], by their type and D."""
    if x.dtype == torch.float32:
        return FLOAT32_TILES
    return TILES[128] if x.shape[3] > 64 else TILES[64]


def tables_for(layout: TreeLayout, q: Tensor, window: int | None = None) -> Tables:
    """Make the layout's tables for queries like these, on the CPU."""
    tiles = tiles_for(q)
    return make_tables(
        layout, queries_per_block=tiles.queries, keys_per_block=tiles.keys, window=window
    )


def attend_by_triton(
    q: Tensor, k: Tensor, v: Tensor, tables: Tables, scale: float, style: Style = PLAIN
) -> Tensor:
    """Compute what `dense_attention` does, for heads as wide as the widest kernel's, or narrower.

    The style's window is that of the tables.
    """
    width = q.shape[3]
    room = next(size for size in HEADS if size >= width) - width
    if room:  # columns of zeros change no score, and give columns of zeros
        q, k, v = (F.pad(x, (0, room)) for x in (q, k, v))
    out: Tensor = TritonTree.apply(q, k, v, tables, scale, style.soft_cap, style.sinks)
    return out[..., :width] if room else out


class TritonTree(torch.autograd.Function):
    """(q, k, v, tables, scale, soft cap, sinks) -> out, as `dense_attention`; exact gradients, no
    second ones.

    A sink takes its share of every row afterwards: with l the log-sum-exp of the row's scores and s
    the sink, weights are those of l' = log(exp l + exp s), the output exp(l − l') times what it
    was, and the kernels of the backward go by l' and that output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tables: Tables,
        scale: float,
        soft_cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (_rows_in_order(x) for x in (q, k, v))
        tiles, flags = tiles_for(q), _flags(q, tables, soft_cap)
        heads, rows, head = q.shape[1:]
        # The next layer wants [1, N, heads · D].
        out = q.new_empty(1, rows, heads, head).transpose(1, 2)
        lse = torch.empty(heads, rows, dtype=torch.float32, device=q.device)
        launch = tiles.forward_of(tables.window is not None and soft_cap is not None)
        kernels.forward_kernel[(heads, len(tables.query_blocks))](
            q,
            k,
            v,
            out,
            lse,
            tables.query_blocks,
            tables.key_runs,
            rows,
            heads // k.shape[1],
            *_strides(q, k, v, out),
            scale * LOG2_E,
            *_style(tables, soft_cap),
            HEAD=head,
            QUERIES=tiles.queries,
            KEYS=launch.step,
            **flags,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
        if sinks is not None:
            own = lse
            lse = torch.logaddexp2(own, (sinks.float() * LOG2_E)[:, None])
            out.mul_(torch.exp2(own - lse)[None, :, :, None])
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.tables, ctx.scale, ctx.soft_cap = tables, scale, soft_cap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        d_out = _rows_in_order(d_out)
        call = ctx.tables, ctx.scale, ctx.soft_cap
        d_q, delta = _query_gradient(q, k, v, out, d_out, lse, *call)
        d_k, d_v = _key_gradient(q, k, v, d_out, lse, delta, *call)
        d_sinks = None
        if sinks is not None:
            share = torch.exp2((sinks.float() * LOG2_E)[:, None] - lse)
            d_sinks = -(share * delta).sum(dim=1).to(sinks.dtype)
        return d_q, d_k, d_v, None, None, None, d_sinks


def _query_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    d_out: Tensor,
    lse: Tensor,
    tables: Tables,
    scale: float,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute dQ, and delta = Σ dO · O of each row, float32 [Hq, N]."""
    tiles = tiles_for(q)
    launch = tiles.query_gradient
    d_q, delta = torch.empty_like(q), torch.empty_like(lse)
    kernels.query_gradient_kernel[(q.shape[1], len(tables.query_blocks))](
        q,
        k,
        v,
        out,
        d_out,
        lse,
        delta,
        d_q,
        tables.query_blocks,
        tables.key_runs,
        q.shape[2],
        q.shape[1] // k.shape[1],
        *_strides(q, k, v, out, d_out, d_q),
        scale * LOG2_E,
        scale,
        *_style(tables, soft_cap),
        HEAD=q.shape[3],
        QUERIES=tiles.queries,
        KEYS=launch.step,
        **_flags(q, tables, soft_cap),
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return d_q, delta


def _key_gradient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    tables: Tables,
    scale: float,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute dK and dV: blocks of keys in pieces, and then the sums over the pieces."""
    tiles, (_, kv_heads, _, head) = tiles_for(q), k.shape
    launch = tiles.key_gradient
    d_k, d_v = torch.empty_like(k), torch.empty_like(v)
    size = max(tables.num_slots, 1), 2, kv_heads, tiles.keys, head
    shares = torch.empty(size, dtype=torch.float32, device=q.device)
    kernels.key_gradient_kernel[(kv_heads, len(tables.key_pieces))](
        q,
        k,
        v,
        d_out,
        lse,
        delta,
        d_k,
        d_v,
        shares,
        tables.key_pieces,
        tables.query_runs,
        q.shape[2],
        q.shape[1] // kv_heads,
        *_strides(q, k, v, d_out, d_k, d_v),
        scale * LOG2_E,
        scale,
        *_style(tables, soft_cap),
        HEAD=head,
        QUERIES=launch.step,
        KEYS=tiles.keys,
        **_flags(q, tables, soft_cap),
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    if len(tables.shared_keys):
        part = min(16, tiles.keys)
        kernels.key_sum_kernel[(kv_heads, len(tables.shared_keys), tiles.keys // part)](
            shares,
            d_k,
            d_v,
            tables.shared_keys,
            *_strides(d_k, d_v),
            HEAD=head,
            KEYS=tiles.keys,
            PART=part,
            num_warps=4,
        )
    return d_k, d_v


def _style(tables: Tables, soft_cap: float | None) -> tuple[Tensor, int, float]:
    """Write positions, window and soft cap (of base 2) as the kernels take them."""
    return tables.positions, tables.window or 0, (soft_cap or 1.0) * LOG2_E


def _rows_in_order(x: Tensor) -> Tensor:
    """Copy where rows of a head are not whole: kernels take any other strides."""
    return x if x.stride(3) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """List the strides of heads and rows."""
    return [x.stride(dim) for x in tensors for dim in (1, 2)]


def _flags(x: Tensor, tables: Tables, soft_cap: float | None) -> dict[str, bool]:
    """Say what the kernels are compiled for."""
    return {
        # The interpreter's products of bfloat16 are wrong (triton-lang/triton#4972).
        "WIDEN": not x.is_cuda and x.dtype == torch.bfloat16,
        "WINDOWED": tables.window is not None,
        "CAPPED": soft_cap is not None,
    }
