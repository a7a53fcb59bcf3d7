"""Tree attention in Triton: online softmax forward, exact backward from the log-sum-exp.

`forward_kernel` and `query_gradient_kernel` take a block of queries and go over the rows it sees;
`key_gradient_kernel` takes a block of keys and goes over the rows that see it. Nothing is added up
by atomics, so equal inputs give equal bits. Rows of other strands are never loaded where they are
not seen. Accumulation is float32; exponentials are of base 2.

Loops come in two kinds: whole tiles without a mask, and the last tile of a run, or the diagonal.
CAPPED: scores are soft-capped, soft_cap being that of base 2. WINDOWED: a key is seen from less
than `window` positions behind it, and every tile has a mask. What is neither costs nothing.
"""

import triton
import triton.language as tl


@triton.jit
def rows_of(base, rows, stride, there, HEAD: tl.constexpr, WIDEN: tl.constexpr):
    """[R, HEAD] of a [N, HEAD] matrix; rows that are not there are zeros."""
    place = base + rows.to(tl.int64)[:, None] * stride + tl.arange(0, HEAD)[None, :]
    found = tl.load(place, mask=there[:, None], other=0.0)
    if WIDEN:
        found = found.to(tl.float32)
    return found


@triton.jit
def whole_rows(base, rows, stride, HEAD: tl.constexpr, WIDEN: tl.constexpr):
    """As `rows_of`, where all rows are there: wide loads."""
    found = tl.load(base + rows.to(tl.int64)[:, None] * stride + tl.arange(0, HEAD)[None, :])
    if WIDEN:
        found = found.to(tl.float32)
    return found


@triton.jit
def product(a, b):
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def scores(a, b, scale, soft_cap, CAPPED: tl.constexpr):
    """Scores of base 2 before any mask."""
    s = product(a, b) * scale
    if CAPPED:
        s = soft_cap * (2.0 / (1.0 + tl.exp(-2.0 * s / soft_cap)) - 1.0)
    return s


@triton.jit
def softmax_step(s, v, highest, total, out):
    """Add a tile of scores [Q, K] (base 2, −inf where hidden) and of values to the sums so far."""
    risen = tl.maximum(highest, tl.max(s, axis=1))
    p = tl.exp2(s - risen[:, None])
    drop = tl.exp2(highest - risen)
    total = total * drop + tl.sum(p, axis=1)
    out = tl.dot(p.to(v.dtype), v, out * drop[:, None], input_precision="tf32x3")
    return risen, total, out


@triton.jit(do_not_specialize=["num_rows"])  # it changes from step to step
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    blocks_ptr,
    seen_ptr,
    num_rows,
    repeat,
    q_head_stride,
    q_row_stride,
    k_head_stride,
    k_row_stride,
    v_head_stride,
    v_row_stride,
    out_head_stride,
    out_row_stride,
    scale,
    positions_ptr,
    window,
    soft_cap,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    block = blocks_ptr + 5 * tl.program_id(1)
    first, stop = tl.load(block), tl.load(block + 1)
    causal, begin, end = tl.load(block + 2), tl.load(block + 3), tl.load(block + 4)
    rows = first + tl.arange(0, QUERIES)
    there = rows < stop
    k_base = k_ptr + (head // repeat) * k_head_stride
    v_base = v_ptr + (head // repeat) * v_head_stride
    q = rows_of(q_ptr + head * q_head_stride, rows, q_row_stride, there, HEAD, WIDEN)

    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, HEAD], tl.float32)
    # Every row sees the first key of whatever comes first, so that `highest` is finite after it.
    if WINDOWED:  # not with a window
        highest = tl.full([QUERIES], -1e30, tl.float32)
        place_q = tl.load(positions_ptr + rows, mask=there, other=0)
    for run in range(begin, end):
        start, limit = tl.load(seen_ptr + 2 * run), tl.load(seen_ptr + 2 * run + 1)
        whole = start + (limit - start) // KEYS * KEYS
        for at in range(start, whole, KEYS):
            keys = at + tl.arange(0, KEYS)
            k = whole_rows(k_base, keys, k_row_stride, HEAD, WIDEN)
            v = whole_rows(v_base, keys, v_row_stride, HEAD, WIDEN)
            s = scores(q, tl.trans(k), scale, soft_cap, CAPPED)
            if WINDOWED:
                near = place_q[:, None] - tl.load(positions_ptr + keys)[None, :] < window
                s = tl.where(near, s, float("-inf"))
            highest, total, out = softmax_step(s, v, highest, total, out)
        if whole < limit:
            keys = whole + tl.arange(0, KEYS)
            inside = keys < limit
            k = rows_of(k_base, keys, k_row_stride, inside, HEAD, WIDEN)
            v = rows_of(v_base, keys, v_row_stride, inside, HEAD, WIDEN)
            s = scores(q, tl.trans(k), scale, soft_cap, CAPPED)
            visible = inside[None, :]
            if WINDOWED:
                place_k = tl.load(positions_ptr + keys, mask=inside, other=0)
                visible = visible & (place_q[:, None] - place_k[None, :] < window)
            s = tl.where(visible, s, float("-inf"))
            highest, total, out = softmax_step(s, v, highest, total, out)
    for at in range(causal, stop, KEYS):
        keys = at + tl.arange(0, KEYS)
        inside = keys < stop
        k = rows_of(k_base, keys, k_row_stride, inside, HEAD, WIDEN)
        v = rows_of(v_base, keys, v_row_stride, inside, HEAD, WIDEN)
        visible = inside[None, :] & (keys[None, :] <= rows[:, None])
        if WINDOWED:
            visible = visible & (rows[:, None] - keys[None, :] < window)
        s = tl.where(visible, scores(q, tl.trans(k), scale, soft_cap, CAPPED), float("-inf"))
        highest, total, out = softmax_step(s, v, highest, total, out)

    if WINDOWED:
        total = tl.where(there, total, 1.0)
    tl.store(lse_ptr + head * num_rows + rows, highest + tl.log2(total), mask=there)
    out = out / total[:, None]
    place = out_ptr + head * out_head_stride + rows.to(tl.int64)[:, None] * out_row_stride
    place += tl.arange(0, HEAD)[None, :]
    tl.store(place, out.to(out_ptr.dtype.element_ty), mask=there[:, None])


@triton.jit
def query_step(s, q, k, v, d_out, lse, delta, d_q, soft_cap, CAPPED: tl.constexpr):
    """Add to dQ what a tile of scores [Q, K] (base 2, −inf where hidden) gives."""
    p = tl.exp2(s - lse[:, None])
    d_s = p * (product(d_out, tl.trans(v)) - delta[:, None])
    if CAPPED:
        capped = s / soft_cap
        d_s = tl.where(p > 0, d_s * (1.0 - capped * capped), 0.0)
    return tl.dot(d_s.to(k.dtype), k, d_q, input_precision="tf32x3")


@triton.jit(do_not_specialize=["num_rows"])  # it changes from step to step
def query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    d_out_ptr,
    lse_ptr,
    delta_ptr,
    d_q_ptr,
    blocks_ptr,
    seen_ptr,
    num_rows,
    repeat,
    q_head_stride,
    q_row_stride,
    k_head_stride,
    k_row_stride,
    v_head_stride,
    v_row_stride,
    out_head_stride,
    out_row_stride,
    d_out_head_stride,
    d_out_row_stride,
    d_q_head_stride,
    d_q_row_stride,
    scale,
    softmax_scale,
    positions_ptr,
    window,
    soft_cap,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """dQ, and delta = Σ dO · O of each row, which `key_gradient_kernel` needs as well."""
    head = tl.program_id(0).to(tl.int64)
    block = blocks_ptr + 5 * tl.program_id(1)
    first, stop = tl.load(block), tl.load(block + 1)
    causal, begin, end = tl.load(block + 2), tl.load(block + 3), tl.load(block + 4)
    rows = first + tl.arange(0, QUERIES)
    there = rows < stop
    k_base = k_ptr + (head // repeat) * k_head_stride
    v_base = v_ptr + (head // repeat) * v_head_stride
    q = rows_of(q_ptr + head * q_head_stride, rows, q_row_stride, there, HEAD, WIDEN)
    out = rows_of(out_ptr + head * out_head_stride, rows, out_row_stride, there, HEAD, WIDEN)
    d_out = rows_of(
        d_out_ptr + head * d_out_head_stride, rows, d_out_row_stride, there, HEAD, WIDEN
    )
    lse = tl.load(lse_ptr + head * num_rows + rows, mask=there, other=0.0)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), axis=1)
    tl.store(delta_ptr + head * num_rows + rows, delta, mask=there)

    d_q = tl.zeros([QUERIES, HEAD], tl.float32)
    if WINDOWED:
        place_q = tl.load(positions_ptr + rows, mask=there, other=0)
    for run in range(begin, end):
        start, limit = tl.load(seen_ptr + 2 * run), tl.load(seen_ptr + 2 * run + 1)
        whole = start + (limit - start) // KEYS * KEYS
        for at in range(start, whole, KEYS):
            keys = at + tl.arange(0, KEYS)
            k = whole_rows(k_base, keys, k_row_stride, HEAD, WIDEN)
            v = whole_rows(v_base, keys, v_row_stride, HEAD, WIDEN)
            s = scores(q, tl.trans(k), scale, soft_cap, CAPPED)
            if WINDOWED:
                near = place_q[:, None] - tl.load(positions_ptr + keys)[None, :] < window
                s = tl.where(near, s, float("-inf"))
            d_q = query_step(s, q, k, v, d_out, lse, delta, d_q, soft_cap, CAPPED)
        if whole < limit:
            keys = whole + tl.arange(0, KEYS)
            inside = keys < limit
            k = rows_of(k_base, keys, k_row_stride, inside, HEAD, WIDEN)
            v = rows_of(v_base, keys, v_row_stride, inside, HEAD, WIDEN)
            s = scores(q, tl.trans(k), scale, soft_cap, CAPPED)
            visible = inside[None, :]
            if WINDOWED:
                place_k = tl.load(positions_ptr + keys, mask=inside, other=0)
                visible = visible & (place_q[:, None] - place_k[None, :] < window)
            s = tl.where(visible, s, float("-inf"))
            d_q = query_step(s, q, k, v, d_out, lse, delta, d_q, soft_cap, CAPPED)
    for at in range(causal, stop, KEYS):
        keys = at + tl.arange(0, KEYS)
        inside = keys < stop
        k = rows_of(k_base, keys, k_row_stride, inside, HEAD, WIDEN)
        v = rows_of(v_base, keys, v_row_stride, inside, HEAD, WIDEN)
        visible = inside[None, :] & (keys[None, :] <= rows[:, None])
        if WINDOWED:
            visible = visible & (rows[:, None] - keys[None, :] < window)
        s = tl.where(visible, scores(q, tl.trans(k), scale, soft_cap, CAPPED), float("-inf"))
        d_q = query_step(s, q, k, v, d_out, lse, delta, d_q, soft_cap, CAPPED)

    place = d_q_ptr + head * d_q_head_stride + rows.to(tl.int64)[:, None] * d_q_row_stride
    place += tl.arange(0, HEAD)[None, :]
    d_q = d_q * softmax_scale
    tl.store(place, d_q.to(d_q_ptr.dtype.element_ty), mask=there[:, None])


@triton.jit
def key_step(s, p, q, v, d_out, delta, d_k, d_v, soft_cap, CAPPED: tl.constexpr):
    """Add to dK and dV what a tile of weights [K, Q] gives, and of scores before any mask."""
    d_v = tl.dot(p.to(d_out.dtype), d_out, d_v, input_precision="tf32x3")
    d_s = p * (product(v, tl.trans(d_out)) - delta[None, :])
    if CAPPED:
        capped = s / soft_cap
        d_s = d_s * (1.0 - capped * capped)
    d_k = tl.dot(d_s.to(q.dtype), q, d_k, input_precision="tf32x3")
    return d_k, d_v


@triton.jit(do_not_specialize=["num_rows"])  # it changes from step to step
def key_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    d_out_ptr,
    lse_ptr,
    delta_ptr,
    d_k_ptr,
    d_v_ptr,
    share_ptr,
    pieces_ptr,
    seers_ptr,
    num_rows,
    repeat,
    q_head_stride,
    q_row_stride,
    k_head_stride,
    k_row_stride,
    v_head_stride,
    v_row_stride,
    d_out_head_stride,
    d_out_row_stride,
    d_k_head_stride,
    d_k_row_stride,
    d_v_head_stride,
    d_v_row_stride,
    scale,
    softmax_scale,
    positions_ptr,
    window,
    soft_cap,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """dK and dV of a block of keys; or a piece's share, float32 [slots, 2, Hkv, KEYS, D]."""
    kv_head = tl.program_id(0).to(tl.int64)
    piece = pieces_ptr + 5 * tl.program_id(1)
    first, stop = tl.load(piece), tl.load(piece + 1)
    begin, end, slot = tl.load(piece + 2), tl.load(piece + 3), tl.load(piece + 4)
    keys = first + tl.arange(0, KEYS)
    inside = keys < stop
    k = rows_of(k_ptr + kv_head * k_head_stride, keys, k_row_stride, inside, HEAD, WIDEN)
    v = rows_of(v_ptr + kv_head * v_head_stride, keys, v_row_stride, inside, HEAD, WIDEN)

    d_k = tl.zeros([KEYS, HEAD], tl.float32)
    d_v = tl.zeros([KEYS, HEAD], tl.float32)
    if WINDOWED:
        place_k = tl.load(positions_ptr + keys, mask=inside, other=0)
    for head in range(kv_head * repeat, (kv_head + 1) * repeat):
        q_base = q_ptr + head * q_head_stride
        d_out_base = d_out_ptr + head * d_out_head_stride
        lse_base, delta_base = lse_ptr + head * num_rows, delta_ptr + head * num_rows
        for run in range(begin, end):
            seer = seers_ptr + 3 * run
            start, last, limit = tl.load(seer), tl.load(seer + 1), tl.load(seer + 2)
            whole = start  # a partly hidden block and the diagonal have a mask in every tile
            if (limit >= stop) & (start >= stop):
                whole = start + (last - start) // QUERIES * QUERIES
            for at in range(start, whole, QUERIES):
                rows = at + tl.arange(0, QUERIES)
                q = whole_rows(q_base, rows, q_row_stride, HEAD, WIDEN)
                d_out = whole_rows(d_out_base, rows, d_out_row_stride, HEAD, WIDEN)
                lse, delta = tl.load(lse_base + rows), tl.load(delta_base + rows)
                s = scores(k, tl.trans(q), scale, soft_cap, CAPPED)
                below = s - lse[None, :]
                if WINDOWED:
                    near = tl.load(positions_ptr + rows)[None, :] - place_k[:, None] < window
                    below = tl.where(near, below, float("-inf"))
                p = tl.exp2(below)
                d_k, d_v = key_step(s, p, q, v, d_out, delta, d_k, d_v, soft_cap, CAPPED)
            for at in range(whole, last, QUERIES):
                rows = at + tl.arange(0, QUERIES)
                there = rows < last
                q = rows_of(q_base, rows, q_row_stride, there, HEAD, WIDEN)
                d_out = rows_of(d_out_base, rows, d_out_row_stride, there, HEAD, WIDEN)
                lse = tl.load(lse_base + rows, mask=there, other=0.0)
                delta = tl.load(delta_base + rows, mask=there, other=0.0)
                # Whoever sees a key comes after it, in the same strand or in another.
                visible = (keys < limit)[:, None] & (keys[:, None] <= rows[None, :])
                if WINDOWED:
                    place_q = tl.load(positions_ptr + rows, mask=there, other=0)
                    visible = visible & (place_q[None, :] - place_k[:, None] < window)
                s = scores(k, tl.trans(q), scale, soft_cap, CAPPED)
                p = tl.exp2(tl.where(visible & there[None, :], s - lse[None, :], float("-inf")))
                d_k, d_v = key_step(s, p, q, v, d_out, delta, d_k, d_v, soft_cap, CAPPED)
    d_k = d_k * softmax_scale

    d = tl.arange(0, HEAD)[None, :]
    if slot < 0:
        far = keys.to(tl.int64)[:, None]
        place = d_k_ptr + kv_head * d_k_head_stride + far * d_k_row_stride + d
        tl.store(place, d_k.to(d_k_ptr.dtype.element_ty), mask=inside[:, None])
        place = d_v_ptr + kv_head * d_v_head_stride + far * d_v_row_stride + d
        tl.store(place, d_v.to(d_v_ptr.dtype.element_ty), mask=inside[:, None])
    else:
        half = tl.num_programs(0).to(tl.int64) * (KEYS * HEAD)
        share = share_ptr + slot * 2 * half + kv_head * (KEYS * HEAD)
        share += tl.arange(0, KEYS)[:, None] * HEAD + d
        tl.store(share, d_k)
        tl.store(share + half, d_v)


@triton.jit
def key_sum_kernel(
    share_ptr,
    d_k_ptr,
    d_v_ptr,
    shared_ptr,
    d_k_head_stride,
    d_k_row_stride,
    d_v_head_stride,
    d_v_row_stride,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
):
    """Add up the shares of a block of keys, in their order: PART of its rows a program."""
    kv_head = tl.program_id(0).to(tl.int64)
    block = shared_ptr + 4 * tl.program_id(1)
    first, stop = tl.load(block), tl.load(block + 1)
    begin, end = tl.load(block + 2), tl.load(block + 3)
    own = tl.program_id(2) * PART + tl.arange(0, PART)
    d = tl.arange(0, HEAD)[None, :]
    d_k = tl.zeros([PART, HEAD], tl.float32)
    d_v = tl.zeros([PART, HEAD], tl.float32)
    half = tl.num_programs(0).to(tl.int64) * (KEYS * HEAD)
    place = share_ptr + begin * 2 * half + kv_head * (KEYS * HEAD) + own[:, None] * HEAD + d
    for _ in range(begin, end):
        d_k += tl.load(place)
        d_v += tl.load(place + half)
        place += 2 * half
    keys = first + own
    far = keys.to(tl.int64)[:, None]
    inside = (keys < stop)[:, None]
    place = d_k_ptr + kv_head * d_k_head_stride + far * d_k_row_stride + d
    tl.store(place, d_k.to(d_k_ptr.dtype.element_ty), mask=inside)
    place = d_v_ptr + kv_head * d_v_head_stride + far * d_v_row_stride + d
    tl.store(place, d_v.to(d_v_ptr.dtype.element_ty), mask=inside)
