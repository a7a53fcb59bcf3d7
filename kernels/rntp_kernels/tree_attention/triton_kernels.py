"""Tree attention in Triton: online softmax forward, exact backward from the log-sum-exp.

`forward_kernel` and `query_gradient_kernel` take a block of queries and go over the rows it sees;
`key_gradient_kernel` takes a block of keys and goes over the rows that see it. Nothing is added up
by atomics, so equal inputs give equal bits. Rows of other chains are never loaded where they are
not seen. Accumulation is float32; exponentials are of base 2.

Loops come in two kinds: whole tiles without a mask, and the last tile of a run, or the diagonal.
CAPPED: scores are soft-capped, soft_cap being that of base 2. WINDOWED: a key is seen from less
than `window` positions behind it, and every tile has a mask. What is neither costs nothing.
"""

import triton
import triton.language as tl


@triton.jit
def rows_of(base, rows, stride, there, HEAD: tl.constexpr, WIDEN: tl.constexpr):
    """Load rows [R, HEAD] of a [N, HEAD] matrix; rows that are not there are zeros."""
    place = base + rows.to(tl.int64)[:, None] * stride + tl.arange(0, HEAD)[None, :]
    found = tl.load(place, mask=there[:, None], other=0.0)
    if WIDEN:
        found = found.to(tl.float32)
    return found


@triton.jit
def whole_rows(base, rows, stride, HEAD: tl.constexpr, WIDEN: tl.constexpr):
    """Load rows as `rows_of` does, where all of them are there: without a mask, by wide loads."""
    found = tl.load(base + rows.to(tl.int64)[:, None] * stride + tl.arange(0, HEAD)[None, :])
    if WIDEN:
        found = found.to(tl.float32)
    return found


@triton.jit
def store_rows(base, rows, stride, there, values, HEAD: tl.constexpr):
    """Store [R, HEAD] to rows of a [N, HEAD] matrix, where they are there, in the matrix's type."""
    place = base + rows.to(tl.int64)[:, None] * stride + tl.arange(0, HEAD)[None, :]
    tl.store(place, values.to(base.dtype.element_ty), mask=there[:, None])


@triton.jit
def product(a, b):
    """Multiply two tiles; float32 ones nearly exactly."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def scores(a, b, scale, soft_cap, CAPPED: tl.constexpr):
    """Score a with b, for exponentials of base 2, before any mask."""
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


@triton.jit
def own_entry(table_ptr):
    """Read this program's entry, five numbers, of a table (see `Tables`)."""
    at = table_ptr + 5 * tl.program_id(1)
    first, stop = tl.load(at), tl.load(at + 1)
    return first, stop, tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@triton.jit
def run_tile(
    q,
    at,
    limit,
    kv,
    place,
    cap,
    WHOLE: tl.constexpr,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Load and score keys [at, at + KEYS) of a run that ends at `limit`: k, v, scores [Q, KEYS].

    kv: base and row stride of keys, then of values. place: positions of the queries, of all rows,
    and the window. cap: scale and soft cap. WHOLE: the tile ends before the limit.
    """
    keys = at + tl.arange(0, KEYS)
    inside = keys < limit
    if WHOLE:
        k = whole_rows(kv[0], keys, kv[1], HEAD, WIDEN)
        v = whole_rows(kv[2], keys, kv[3], HEAD, WIDEN)
    else:
        k = rows_of(kv[0], keys, kv[1], inside, HEAD, WIDEN)
        v = rows_of(kv[2], keys, kv[3], inside, HEAD, WIDEN)
    s = scores(q, tl.trans(k), cap[0], cap[1], CAPPED)
    if WINDOWED:
        place_k = tl.load(place[1] + keys, mask=inside, other=0)
        s = tl.where(place[0][:, None] - place_k[None, :] < place[2], s, float("-inf"))
    if not WHOLE:
        s = tl.where(inside[None, :], s, float("-inf"))
    return k, v, s


@triton.jit
def causal_tile(
    q,
    at,
    stop,
    rows,
    kv,
    window,
    cap,
    HEAD: tl.constexpr,
    KEYS: tl.constexpr,
    WIDEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Load and score keys [at, at + KEYS) of the queries' own chain, as `run_tile` does."""
    keys = at + tl.arange(0, KEYS)
    inside = keys < stop
    k = rows_of(kv[0], keys, kv[1], inside, HEAD, WIDEN)
    v = rows_of(kv[2], keys, kv[3], inside, HEAD, WIDEN)
    visible = inside[None, :] & (keys[None, :] <= rows[:, None])
    if WINDOWED:
        visible = visible & (rows[:, None] - keys[None, :] < window)
    s = tl.where(visible, scores(q, tl.trans(k), cap[0], cap[1], CAPPED), float("-inf"))
    return k, v, s


@triton.jit(do_not_specialize=["num_rows"])  # it changes from step to step
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    blocks_ptr,
    key_runs_ptr,
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
    first, stop, causal, begin, end = own_entry(blocks_ptr)
    rows = first + tl.arange(0, QUERIES)
    there = rows < stop
    kv_head = head // repeat
    k_base, v_base = k_ptr + kv_head * k_head_stride, v_ptr + kv_head * v_head_stride
    kv, cap = (k_base, k_row_stride, v_base, v_row_stride), (scale, soft_cap)
    q = rows_of(q_ptr + head * q_head_stride, rows, q_row_stride, there, HEAD, WIDEN)

    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, HEAD], tl.float32)
    # Every row sees the first key of whatever comes first, so that `highest` is finite after it.
    place = (rows, positions_ptr, window)
    if WINDOWED:  # not with a window
        highest = tl.full([QUERIES], -1e30, tl.float32)
        place = (tl.load(positions_ptr + rows, mask=there, other=0), positions_ptr, window)
    for run in range(begin, end):
        start, limit = tl.load(key_runs_ptr + 2 * run), tl.load(key_runs_ptr + 2 * run + 1)
        whole = start + (limit - start) // KEYS * KEYS
        for at in range(start, whole, KEYS):
            _, v, s = run_tile(
                q, at, limit, kv, place, cap, True, HEAD, KEYS, WIDEN, WINDOWED, CAPPED
            )
            highest, total, out = softmax_step(s, v, highest, total, out)
        if whole < limit:
            _, v, s = run_tile(
                q, whole, limit, kv, place, cap, False, HEAD, KEYS, WIDEN, WINDOWED, CAPPED
            )
            highest, total, out = softmax_step(s, v, highest, total, out)
    for at in range(causal, stop, KEYS):
        _, v, s = causal_tile(
            q, at, stop, rows, kv, window, cap, HEAD, KEYS, WIDEN, WINDOWED, CAPPED
        )
        highest, total, out = softmax_step(s, v, highest, total, out)

    if WINDOWED:
        total = tl.where(there, total, 1.0)
    tl.store(lse_ptr + head * num_rows + rows, highest + tl.log2(total), mask=there)
    out = out / total[:, None]
    store_rows(out_ptr + head * out_head_stride, rows, out_row_stride, there, out, HEAD)


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
    key_runs_ptr,
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
    """Compute dQ, and delta = Σ dO · O of each row, which `key_gradient_kernel` needs as well."""
    head = tl.program_id(0).to(tl.int64)
    first, stop, causal, begin, end = own_entry(blocks_ptr)
    rows = first + tl.arange(0, QUERIES)
    there = rows < stop
    kv_head = head // repeat
    k_base, v_base = k_ptr + kv_head * k_head_stride, v_ptr + kv_head * v_head_stride
    kv, cap = (k_base, k_row_stride, v_base, v_row_stride), (scale, soft_cap)
    q = rows_of(q_ptr + head * q_head_stride, rows, q_row_stride, there, HEAD, WIDEN)
    out = rows_of(out_ptr + head * out_head_stride, rows, out_row_stride, there, HEAD, WIDEN)
    d_out = rows_of(
        d_out_ptr + head * d_out_head_stride, rows, d_out_row_stride, there, HEAD, WIDEN
    )
    lse = tl.load(lse_ptr + head * num_rows + rows, mask=there, other=0.0)
    delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), axis=1)
    tl.store(delta_ptr + head * num_rows + rows, delta, mask=there)

    d_q = tl.zeros([QUERIES, HEAD], tl.float32)
    place = (rows, positions_ptr, window)
    if WINDOWED:
        place = (tl.load(positions_ptr + rows, mask=there, other=0), positions_ptr, window)
    for run in range(begin, end):
        start, limit = tl.load(key_runs_ptr + 2 * run), tl.load(key_runs_ptr + 2 * run + 1)
        whole = start + (limit - start) // KEYS * KEYS
        for at in range(start, whole, KEYS):
            k, v, s = run_tile(
                q, at, limit, kv, place, cap, True, HEAD, KEYS, WIDEN, WINDOWED, CAPPED
            )
            d_q = query_step(s, q, k, v, d_out, lse, delta, d_q, soft_cap, CAPPED)
        if whole < limit:
            k, v, s = run_tile(
                q, whole, limit, kv, place, cap, False, HEAD, KEYS, WIDEN, WINDOWED, CAPPED
            )
            d_q = query_step(s, q, k, v, d_out, lse, delta, d_q, soft_cap, CAPPED)
    for at in range(causal, stop, KEYS):
        k, v, s = causal_tile(
            q, at, stop, rows, kv, window, cap, HEAD, KEYS, WIDEN, WINDOWED, CAPPED
        )
        d_q = query_step(s, q, k, v, d_out, lse, delta, d_q, soft_cap, CAPPED)

    d_q = d_q * softmax_scale
    store_rows(d_q_ptr + head * d_q_head_stride, rows, d_q_row_stride, there, d_q, HEAD)


@triton.jit
def query_tile(
    k,
    at,
    run,
    query,
    place,
    cap,
    WHOLE: tl.constexpr,
    HEAD: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """Load queries [at, at + QUERIES) of a run, and weigh the keys for them: q, d_out, delta,
    scores before any mask and softmax weights, both [K, Q].

    run: row where it ends, and the key before which it sees keys. query: base and row stride of q,
    then of d_out, and where lse and delta of the head begin. place: the keys' rows, their
    positions, those of all rows, and the window. WHOLE: the tile ends before the run, and all of it
    sees all of the keys.
    """
    last, limit, keys = run[0], run[1], place[0]
    rows = at + tl.arange(0, QUERIES)
    there = rows < last
    if WHOLE:
        q = whole_rows(query[0], rows, query[1], HEAD, WIDEN)
        d_out = whole_rows(query[2], rows, query[3], HEAD, WIDEN)
        lse, delta = tl.load(query[4] + rows), tl.load(query[5] + rows)
    else:
        q = rows_of(query[0], rows, query[1], there, HEAD, WIDEN)
        d_out = rows_of(query[2], rows, query[3], there, HEAD, WIDEN)
        lse = tl.load(query[4] + rows, mask=there, other=0.0)
        delta = tl.load(query[5] + rows, mask=there, other=0.0)
    s = scores(k, tl.trans(q), cap[0], cap[1], CAPPED)
    below = s - lse[None, :]
    if WINDOWED:
        place_q = tl.load(place[2] + rows, mask=there, other=0)
        below = tl.where(place_q[None, :] - place[1][:, None] < place[3], below, float("-inf"))
    if not WHOLE:  # whoever sees a key comes after it, in the same chain or in another
        visible = (keys < limit)[:, None] & (keys[:, None] <= rows[None, :]) & there[None, :]
        below = tl.where(visible, below, float("-inf"))
    return q, d_out, delta, s, tl.exp2(below)


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


@triton.jit
def store_share(share_ptr, slot, kv_head, d_k, d_v, HEAD: tl.constexpr, KEYS: tl.constexpr):
    """Store a piece's share of dK and dV, float32, in its slot."""
    half = tl.num_programs(0).to(tl.int64) * (KEYS * HEAD)
    share = share_ptr + slot * 2 * half + kv_head * (KEYS * HEAD)
    share += tl.arange(0, KEYS)[:, None] * HEAD + tl.arange(0, HEAD)[None, :]
    tl.store(share, d_k)
    tl.store(share + half, d_v)


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
    query_runs_ptr,
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
    """Compute dK, dV of a block of keys, or a piece's share, float32 [slots, 2, Hkv, KEYS, D]."""
    kv_head = tl.program_id(0).to(tl.int64)
    first, stop, begin, end, slot = own_entry(pieces_ptr)
    keys = first + tl.arange(0, KEYS)
    inside = keys < stop
    k = rows_of(k_ptr + kv_head * k_head_stride, keys, k_row_stride, inside, HEAD, WIDEN)
    v = rows_of(v_ptr + kv_head * v_head_stride, keys, v_row_stride, inside, HEAD, WIDEN)

    d_k = tl.zeros([KEYS, HEAD], tl.float32)
    d_v = tl.zeros([KEYS, HEAD], tl.float32)
    cap = (scale, soft_cap)
    place = (keys, keys, positions_ptr, window)
    if WINDOWED:
        place = (keys, tl.load(positions_ptr + keys, mask=inside, other=0), positions_ptr, window)
    for head in range(kv_head * repeat, (kv_head + 1) * repeat):
        q_base, d_out_base = q_ptr + head * q_head_stride, d_out_ptr + head * d_out_head_stride
        lse_base, delta_base = lse_ptr + head * num_rows, delta_ptr + head * num_rows
        query = (q_base, q_row_stride, d_out_base, d_out_row_stride, lse_base, delta_base)
        for number in range(begin, end):
            entry = query_runs_ptr + 3 * number
            start, last, limit = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
            run = (last, limit)
            whole = start  # a partly hidden block and the diagonal have a mask in every tile
            if (limit >= stop) & (start >= stop):
                whole = start + (last - start) // QUERIES * QUERIES
            for at in range(start, whole, QUERIES):
                q, d_out, delta, s, p = query_tile(
                    k, at, run, query, place, cap, True, HEAD, QUERIES, WIDEN, WINDOWED, CAPPED
                )
                d_k, d_v = key_step(s, p, q, v, d_out, delta, d_k, d_v, soft_cap, CAPPED)
            for at in range(whole, last, QUERIES):
                q, d_out, delta, s, p = query_tile(
                    k, at, run, query, place, cap, False, HEAD, QUERIES, WIDEN, WINDOWED, CAPPED
                )
                d_k, d_v = key_step(s, p, q, v, d_out, delta, d_k, d_v, soft_cap, CAPPED)
    d_k = d_k * softmax_scale

    if slot < 0:
        store_rows(d_k_ptr + kv_head * d_k_head_stride, keys, d_k_row_stride, inside, d_k, HEAD)
        store_rows(d_v_ptr + kv_head * d_v_head_stride, keys, d_v_row_stride, inside, d_v, HEAD)
    else:
        store_share(share_ptr, slot, kv_head, d_k, d_v, HEAD, KEYS)


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
    store_rows(d_k_ptr + kv_head * d_k_head_stride, keys, d_k_row_stride, keys < stop, d_k, HEAD)
    store_rows(d_v_ptr + kv_head * d_v_head_stride, keys, d_v_row_stride, keys < stop, d_v, HEAD)
