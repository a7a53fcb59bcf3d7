"""Decoding in Triton: one new token a branch, against its page and its own tokens so far.

The first kernel takes the queries of many branches, and of all heads that share keys, against a
piece of their page: keys and values of a page are read once for all of its branches. The second
goes over a branch's own tokens, adds the pieces, and stores the new token's key and value. Where
each branch stands is read from the device, so that both can be part of a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rntp_kernels.tree_attention.style import PLAIN, Style
from rntp_kernels.tree_attention.triton_kernels import capped, scores, softmax_step

LOG2_E = 1.4426950408889634
ROWS, KEYS = 64, 64  # queries and keys of a tile
OWN = 32  # own tokens of a tile
_WARPS, _STAGES = 4, 3
_PIECES = 16  # of a page, at most


@triton.jit
def prefix_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    visible_ptr,
    lengths_ptr,
    highest_ptr,
    total_ptr,
    part_ptr,
    branches,
    kv_heads,
    repeat,
    slots,
    keys_per_piece,
    q_head_stride,
    q_row_stride,
    scale,
    window,
    soft_cap,
    HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Compute softmax statistics and weighted values of ROWS queries over a piece of their page.

    Rows are branch-major: row r is branch r // repeat with its head r % repeat of the group.
    highest, total: [D · Hkv, pieces, rows]; part: [D · Hkv, pieces, rows, HEAD], float32.
    """
    group = tl.program_id(0).to(tl.int64)  # document · Hkv + head of keys
    document, kv_head = group // kv_heads, group % kv_heads
    piece = tl.program_id(2)
    num_rows = branches * repeat
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    there = rows < num_rows
    branch = document * branches + rows // repeat
    head = kv_head * repeat + rows % repeat
    d = tl.arange(0, HEAD)
    place = q_ptr + head * q_head_stride + branch * q_row_stride
    q = tl.load(place[:, None] + d[None, :], mask=there[:, None], other=0.0)
    limit = tl.load(visible_ptr + branch, mask=there, other=0).to(tl.int32)
    if WIDEN:
        q = q.to(tl.float32)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, HEAD], tl.float32)
    first = piece * keys_per_piece
    if WINDOWED:  # the new token's place is behind those that it sees, and its own
        behind = limit + tl.load(lengths_ptr + branch, mask=there, other=0).to(tl.int32) - window
    last = tl.minimum(first + keys_per_piece, tl.max(limit, axis=0))
    page = group * slots * HEAD
    for at in range(first, last, KEYS):
        keys = at + tl.arange(0, KEYS)
        where = page + keys.to(tl.int64)[:, None] * HEAD + d[None, :]
        inside = (keys < last)[:, None]
        k = tl.load(k_ptr + where, mask=inside, other=0.0)
        v = tl.load(v_ptr + where, mask=inside, other=0.0)
        if WIDEN:
            k, v = k.to(tl.float32), v.to(tl.float32)
        s = scores(q, tl.trans(k), scale, soft_cap, CAPPED)
        seen = (keys[None, :] < limit[:, None]) & inside.T
        if WINDOWED:
            seen = seen & (keys[None, :] > behind[:, None])
        # A finite floor: a row that sees nothing of this piece has no maximum.
        s = tl.where(seen, s, float("-inf"))
        level = tl.maximum(highest, -1e30)
        _, total, out = softmax_step(s, v, level, total, out)
        highest = tl.maximum(highest, tl.max(s, axis=1))
    slot = (group * tl.num_programs(2) + piece) * num_rows + rows
    tl.store(highest_ptr + slot, highest, mask=there)
    tl.store(total_ptr + slot, total, mask=there)
    tl.store(part_ptr + slot[:, None] * HEAD + d[None, :], out, mask=there[:, None])


@triton.jit
def add_own(s, v, highest, total, out):
    """Add scores [OWN] (base 2, −inf where hidden) and values to a branch's sums so far."""
    risen = tl.maximum(highest, tl.max(s, axis=0))
    p = tl.exp2(s - risen)
    drop = tl.exp2(highest - risen)
    return risen, total * drop + tl.sum(p, axis=0), out * drop + tl.sum(p[:, None] * v, axis=0)


@triton.jit
def add_piece(top, weights, values, highest, total, out):
    """Add a piece of the page, its highest score, sum of weights and of values, to a branch's."""
    risen = tl.maximum(highest, top)
    drop = tl.exp2(highest - risen)
    share = tl.exp2(top - risen)
    return risen, total * drop + weights * share, out * drop + values * share


@triton.jit
def branch_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    own_k_ptr,
    own_v_ptr,
    places_ptr,
    lengths_ptr,
    sinks_ptr,
    highest_ptr,
    total_ptr,
    part_ptr,
    out_ptr,
    branches,
    places,
    repeat,
    budget,
    pieces,
    q_head_stride,
    q_row_stride,
    k_head_stride,
    k_row_stride,
    v_head_stride,
    v_row_stride,
    out_head_stride,
    out_row_stride,
    scale,
    window,
    soft_cap,
    HEAD: tl.constexpr,
    OWN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SINKS: tl.constexpr,
):
    """Attend with a branch's head: to its own tokens, the new one, and the pieces of the page.

    places: of each document, that storage has for own tokens.
    """
    row = tl.program_id(0).to(tl.int64)  # document · branches + branch
    head = tl.program_id(1).to(tl.int64)
    kv_heads = tl.num_programs(1) // repeat
    document, branch, kv_head = row // branches, row % branches, head // repeat
    group = document * kv_heads + kv_head
    d = tl.arange(0, HEAD)
    q = tl.load(q_ptr + head * q_head_stride + row * q_row_stride + d).to(tl.float32) * scale
    new_k = tl.load(k_ptr + kv_head * k_head_stride + row * k_row_stride + d)
    new_v = tl.load(v_ptr + kv_head * v_head_stride + row * v_row_stride + d)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    # The new token sees itself, so that the maximum is finite from here on.
    highest = capped(tl.sum(new_k.to(tl.float32) * q, axis=0), soft_cap, CAPPED)
    total = 1.0
    out = new_v.to(tl.float32)
    storage = (group * places + tl.load(places_ptr + row)) * budget * HEAD
    oldest = 0
    if WINDOWED:
        oldest = tl.maximum(length - window + 1, 0)
    for at in range(oldest // OWN * OWN, length, OWN):
        own = at + tl.arange(0, OWN)
        inside = (own < length) & (own >= oldest)
        where = storage + own[:, None] * HEAD + d[None, :]
        k = tl.load(own_k_ptr + where, mask=inside[:, None], other=0.0).to(tl.float32)
        v = tl.load(own_v_ptr + where, mask=inside[:, None], other=0.0).to(tl.float32)
        s = capped(tl.sum(k * q[None, :], axis=1), soft_cap, CAPPED)
        highest, total, out = add_own(tl.where(inside, s, float("-inf")), v, highest, total, out)
    slot = group * pieces * branches * repeat + branch * repeat + head % repeat
    for _ in range(0, pieces):
        values = tl.load(part_ptr + slot * HEAD + d)
        top, weights = tl.load(highest_ptr + slot), tl.load(total_ptr + slot)
        highest, total, out = add_piece(top, weights, values, highest, total, out)
        slot += branches * repeat
    if SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        highest, total, out = add_piece(sink, 1.0, 0.0, highest, total, out)
    out = (out / total).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + head * out_head_stride + row * out_row_stride + d, out)
    if head % repeat == 0:  # nobody reads this place now
        where = storage + length * HEAD + d
        tl.store(own_k_ptr + where, new_k)
        tl.store(own_v_ptr + where, new_v)


def decode_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    doc_k: Tensor,
    doc_v: Tensor,
    own_k: Tensor,
    own_v: Tensor,
    visible: Tensor,
    places: Tensor,
    lengths: Tensor,
    scale: float,
    style: Style = PLAIN,
) -> Tensor:
    """Attend from one new token a branch, and store its key and value.

    q [1, Hq, D·B, head], k and v [1, Hkv, D·B, head] of the new tokens -> [1, Hq, D·B, head].

    doc_k, doc_v: [D, Hkv, slots, head]. own_k, own_v: [D, Hkv, places, budget, head], to which the
    new token is added at `lengths`. visible, places, lengths: int64 [D, B]; places: where each
    branch's own tokens are.
    """
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    documents, kv_heads, stored, budget, head = own_k.shape
    branches = visible.shape[1]
    highest, total, part = _attend_prefix(q, doc_k, doc_v, visible, lengths, scale, style)
    out = q.new_empty(1, documents * branches, q.shape[1], head).transpose(1, 2)
    branch_kernel[(documents * branches, q.shape[1])](
        q,
        k,
        v,
        own_k,
        own_v,
        places,
        lengths,
        highest if style.sinks is None else style.sinks,
        highest,
        total,
        part,
        out,
        branches,
        stored,
        q.shape[1] // kv_heads,
        budget,
        highest.shape[1],
        *(x.stride(dim) for x in (q, k, v, out) for dim in (1, 2)),
        scale * LOG2_E,
        *_window_and_cap(style),
        **_flags(style),
        SINKS=style.sinks is not None,
        HEAD=head,
        OWN=OWN,
        num_warps=1,
    )
    return out


def _attend_prefix(
    q: Tensor,
    doc_k: Tensor,
    doc_v: Tensor,
    visible: Tensor,
    lengths: Tensor,
    scale: float,
    style: Style,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute each piece's maximum and total [D · Hkv, pieces, rows], and values [.., head]."""
    documents, kv_heads, slots, head = doc_k.shape
    branches = visible.shape[1]
    repeat = q.shape[1] // kv_heads
    num_rows = branches * repeat
    row_tiles = triton.cdiv(num_rows, ROWS)
    pieces = _pieces(q.device, documents * kv_heads * row_tiles, slots)
    size = documents * kv_heads, pieces, num_rows
    highest, total = torch.empty(2, *size, dtype=torch.float32, device=q.device)
    part = torch.empty(*size, head, dtype=torch.float32, device=q.device)
    prefix_kernel[(documents * kv_heads, row_tiles, pieces)](
        q,
        doc_k,
        doc_v,
        visible,
        lengths,
        highest,
        total,
        part,
        branches,
        kv_heads,
        repeat,
        slots,
        triton.cdiv(triton.cdiv(slots, pieces), KEYS) * KEYS,
        q.stride(1),
        q.stride(2),
        scale * LOG2_E,
        *_window_and_cap(style),
        **_flags(style),
        HEAD=head,
        ROWS=ROWS,
        KEYS=KEYS,
        WIDEN=not q.is_cuda and q.dtype == torch.bfloat16,
        num_warps=_WARPS,
        num_stages=_STAGES if q.element_size() == 2 else 1,  # what fits into shared memory
    )
    return highest, total, part


def _window_and_cap(style: Style) -> tuple[int, float]:
    """Write window and soft cap (of base 2) as the kernels take them."""
    return style.window or 0, (style.soft_cap or 1.0) * LOG2_E


def _flags(style: Style) -> dict[str, bool]:
    """Say what the kernels are compiled for."""
    return {"WINDOWED": style.window is not None, "CAPPED": style.soft_cap is not None}


def _pieces(device: torch.device, programs: int, slots: int) -> int:
    """Count the pieces of a page that keep the device busy: two programs a multiprocessor."""
    wanted = 4
    if device.type == "cuda":
        wanted = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(_PIECES, triton.cdiv(wanted, programs), triton.cdiv(slots, KEYS)))
