"""Log-prob, entropy and arg-max in Triton without logits in memory: for scores without gradients.

Each program multiplies a tile of rows with its share of the vocabulary and keeps running statistics
of the softmax; the shares are merged in PyTorch. Memory is O(rows · shares). No atomics. The last
tile of the vocabulary is masked: columns that are not there would count as exp(0).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rntp_kernels.linear_logprob.rows import Shaping
from rntp_kernels.linear_logprob.triton_rows import online, scaled, vocabulary

# Of the sizes tried ahead of time for sm_90, the largest without spills that leaves room for
# several stages of loads.
TILE = {"ROWS": 128, "COLUMNS": 128, "INNER": 64}
WARPS, STAGES = 8, 4


@triton.jit
def forward_kernel(
    hidden_ptr,
    weight_ptr,
    target_ptr,
    inverse_ptr,
    highest_ptr,
    total_ptr,
    weighted_ptr,
    own_ptr,
    chosen_ptr,
    num_rows,
    width,
    vocabulary,
    share,
    hidden_stride,
    weight_stride,
    soft_cap,
    CAPPED: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < num_rows
    part = tl.program_id(1)
    inner = tl.arange(0, INNER)
    target = tl.load(target_ptr + rows, mask=there, other=0)
    inverse = tl.load(inverse_ptr + rows, mask=there, other=1.0)
    hidden_rows = hidden_ptr + rows.to(tl.int64)[:, None] * hidden_stride

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    weighted = tl.zeros([ROWS], tl.float32)
    own = tl.zeros([ROWS], tl.float32)
    chosen = tl.zeros([ROWS], tl.int32)
    for first in range(part * share, tl.minimum((part + 1) * share, vocabulary), COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < vocabulary
        weight_rows = weight_ptr + columns.to(tl.int64)[None, :] * weight_stride
        logits = tl.zeros([ROWS, COLUMNS], tl.float32)
        for k in range(0, width, INNER):
            place = k + inner
            x_mask, w_mask = there[:, None], inside[None, :]
            if not EVEN:  # a mask along the inner axis costs the wide loads
                x_mask = x_mask & (place < width)[None, :]
                w_mask = w_mask & (place < width)[:, None]
            x = tl.load(hidden_rows + place[None, :], mask=x_mask, other=0.0)
            w = tl.load(weight_rows + place[:, None], mask=w_mask, other=0.0)
            if WIDEN:
                x, w = x.to(tl.float32), w.to(tl.float32)
            logits = tl.dot(x, w, logits, input_precision="ieee")
        z = scaled(logits, inverse[:, None], soft_cap, CAPPED)
        # Rows that are not there would be 0 · −inf where a weight is.
        z = tl.where(inside[None, :] & there[:, None], z, float("-inf"))
        own += tl.sum(tl.where(columns[None, :] == target[:, None], z, 0.0), axis=1)
        highest, total, weighted, best, chosen = online(
            z, highest, total, weighted, best, chosen, first
        )
    slot = part * num_rows + rows
    tl.store(highest_ptr + slot, highest, mask=there)
    tl.store(total_ptr + slot, total, mask=there)
    tl.store(weighted_ptr + slot, weighted, mask=there)
    tl.store(own_ptr + slot, own, mask=there)
    tl.store(chosen_ptr + slot, chosen, mask=there)


def forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    inverse_temperature: Tensor,
    shaping: Shaping,
    *,
    tile: dict[str, int] | None = None,
    shares: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute log-prob, entropy, log-sum-exp (float32 nats) and arg-max, each [N].

    shares: pieces of the vocabulary; by default enough programs to fill the device.
    """
    tile = TILE if tile is None else tile
    num_rows = hidden.shape[0]
    if num_rows == 0:
        empty = torch.empty(0, dtype=torch.float32, device=hidden.device)
        return empty, empty.clone(), empty.clone(), torch.empty_like(targets)
    size = vocabulary(weight.shape[0], shaping)
    row_tiles = triton.cdiv(num_rows, tile["ROWS"])
    if shares is None:
        shares = max(1, min(64, _programs(hidden.device) // row_tiles))
    # A share is a whole number of tiles, so that only the last tile of all is masked.
    share = triton.cdiv(triton.cdiv(size, shares), tile["COLUMNS"]) * tile["COLUMNS"]
    shares = triton.cdiv(size, share)
    highest, total, weighted, own = (
        torch.empty(shares, num_rows, dtype=torch.float32, device=hidden.device) for _ in range(4)
    )
    chosen = torch.empty(shares, num_rows, dtype=torch.int32, device=hidden.device)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    forward_kernel[(row_tiles, shares)](
        hidden,
        weight,
        targets.contiguous(),
        inverse_temperature.float().contiguous(),
        highest,
        total,
        weighted,
        own,
        chosen,
        num_rows,
        hidden.shape[1],
        size,
        share,
        hidden.stride(0),
        weight.stride(0),
        shaping.soft_cap or 0.0,
        CAPPED=shaping.soft_cap is not None,
        EVEN=hidden.shape[1] % tile["INNER"] == 0,
        # The interpreter's products of bfloat16 are wrong (triton-lang/triton#4972).
        WIDEN=not hidden.is_cuda and hidden.dtype == torch.bfloat16,
        **tile,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return merge(highest, total, weighted, own, chosen)


def merge(
    highest: Tensor, total: Tensor, weighted: Tensor, own: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge statistics of shares, [shares, N], into log-prob, entropy, log-sum-exp, arg-max [N].

    own: the target's logit in the share that has it, 0 in the others.
    """
    level = highest.amax(dim=0)
    drop = (highest - level).clamp_min(torch.finfo(highest.dtype).min)
    total_of_all = (total * drop.exp()).sum(dim=0)
    below = ((weighted + total * drop) * drop.exp()).sum(dim=0) / total_of_all
    lse = level + total_of_all.log()
    # The first share that has the maximum, and so the lowest id.
    winner = highest.argmax(dim=0, keepdim=True)
    entropy = total_of_all.log() - below
    return own.sum(dim=0) - lse, entropy, lse, chosen.gather(0, winner)[0].long()


def _programs(device: torch.device) -> int:
    """Count the programs that keep the device busy: two a multiprocessor."""
    if device.type != "cuda":
        return 4
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count
