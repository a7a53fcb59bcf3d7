"""Which implementation computes tree attention, and whether it can be trusted on this device.

dense       A mask over all pairs: the oracle, for tests.
segmented   Pieces that library kernels know. The CPU, and everything the others do not take.
triton      Own kernels. CUDA, bfloat16 and float16, heads up to 128 (filled up to a power of two).
flash       The package flash-attn. CUDA, bfloat16 and float16, plain packed sequences alone.

dense, segmented and triton have windows, soft caps and sinks; flash has none here.

The environment variable RNTP_TREE_ATTENTION overrides `auto`.
"""

import warnings
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from rntp_kernels.choice import has_flash, has_triton, interpreted, requested, require_agreement
from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.style import PLAIN, Style

Implementation = Literal["auto", "segmented", "dense", "triton", "flash"]
OVERRIDE = "RNTP_TREE_ATTENTION"
HEADS = (16, 32, 64, 128)  # sizes of a head that the kernels take; others are filled up
_HALVES = (torch.bfloat16, torch.float16)


def choose(
    asked: Implementation, q: Tensor, k: Tensor, *, plain: bool = False, style: Style = PLAIN
) -> Implementation:
    """Pick an implementation other than `auto`, for queries [1, Hq, N, D] and keys [1, Hkv, N, D].

    plain: the layout has no branches. style: what the layer does besides.

    Raises ValueError for one that does not exist or cannot run here, RuntimeError for one that
    fails its check against the oracle. `auto` warns, once, where CUDA tensors get no kernel.
    """
    name = requested(asked, OVERRIDE, get_args(Implementation))
    if name == "auto":
        flash = plain and not _obstacle("flash", q, plain=plain, style=style)
        name = "flash" if flash else _fastest(q, style)
    reason = _obstacle(name, q, plain=plain, style=style)
    if reason:
        raise ValueError(f"tree attention {name!r} {reason}; use segmented (see {OVERRIDE})")
    if name in ("triton", "flash") and q.is_cuda:
        features = tuple(x is not None and x is not False for x in style.kind)
        self_check(name, q.device, q.dtype, q.shape[3], q.shape[1] // k.shape[1], features)
    return name  # type: ignore[return-value]


def decode_choice(q: Tensor, k: Tensor, v: Tensor, style: Style = PLAIN) -> str:
    """Pick `triton` or `segmented` (products of the library) for decoding in fixed shapes, by the
    same variable. q [1, Hq, N, D], k [1, Hkv, N, D], v [1, Hkv, N, E].

    Raises RuntimeError if the kernels fail their check against the other way.
    """
    name = requested("auto", OVERRIDE, get_args(Implementation))
    if name == "auto":
        name = _fastest(q, style)
    if name != "triton" or _obstacle("triton", q, style=style):
        return "segmented"
    if q.shape[3] not in HEADS or k.shape[3] != v.shape[3]:
        # To fill heads up would be to copy all that is stored at every token.
        if q.is_cuda:
            _warn(
                f"decodes heads of {', '.join(map(str, HEADS))}, not of {k.shape[3]} with values "
                f"of {v.shape[3]}"
            )
        return "segmented"
    if q.is_cuda:
        features = tuple(x is not None and x is not False for x in style.kind)
        check_decode(q.device, q.dtype, q.shape[3], q.shape[1] // k.shape[1], features)
    return "triton"


@cache
def check_decode(
    device: torch.device,
    dtype: torch.dtype,
    head: int,
    repeat: int,
    features: tuple[bool, ...] = (False, False, False),
) -> None:
    """Compare a step of the decoding kernels with softmax over a mask, once a process and kind of
    head.

    features: whether layers have a window, a soft cap, sinks. Raises RuntimeError if they differ.
    """
    from rntp_kernels.tree_attention.triton_decode import decode_step

    generator = torch.Generator().manual_seed(0)
    documents, branches, kv_heads, slots, budget = 2, 37, 2, 150, 45
    own, rows = (documents, kv_heads, branches + 3, budget, head), documents * branches

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    q, k, v = (values(1, n, rows, head) for n in (kv_heads * repeat, kv_heads, kv_heads))
    doc_k, doc_v = (values(documents, kv_heads, slots, head) for _ in range(2))
    own_k, own_v = values(*own), values(*own)
    places = [torch.randperm(own[2], generator=generator)[:branches] for _ in range(documents)]
    place = torch.stack(places).to(device)
    visible = torch.arange(rows).mul(2).view(documents, branches).to(device)
    lengths = (torch.arange(rows) % budget).view(documents, branches).to(device)
    past = [
        torch.stack([x.index_select(1, at) for x, at in zip(stored, place, strict=True)])
        for stored in (own_k, own_v)
    ]
    window, soft_cap, has_sinks = features
    sinks = torch.linspace(-1, 2, kv_heads * repeat, device=device).to(dtype)
    style = Style(50 if window else None, 2.0 if soft_cap else None, sinks if has_sinks else None)
    exact, usual = (
        _plain_decode([x.to(kind) for x in (q, k, v, doc_k, doc_v, *past)], visible, lengths, style)
        for kind in (torch.float64, dtype)
    )
    mine = decode_step(q, k, v, doc_k, doc_v, own_k, own_v, visible, place, lengths, 0.2, style)
    require_agreement(
        f"decoding by 'triton' on {device} in {dtype} with heads of {head}",
        ("output",),
        [mine.double()],
        [usual.double()],
        [exact],
        f"set {OVERRIDE}=segmented",
    )


def _plain_decode(tensors: list[Tensor], visible: Tensor, lengths: Tensor, style: Style) -> Tensor:
    """Compute `decode_step` of its first seven arguments, each branch's own tokens in its place,
    with all scores in memory and a scale of 0.2."""
    q, k, v, doc_k, doc_v, own_k, own_v = tensors
    documents, kv_heads, branches, budget, head = own_k.shape
    repeat = q.shape[1] // kv_heads

    def by_branch(x: Tensor) -> Tensor:  # [1, heads, D·B, head] -> [D, B, heads, head]
        return x[0].view(-1, documents, branches, head).permute(1, 2, 0, 3)

    def all_of(doc: Tensor, own: Tensor, new: Tensor) -> Tensor:  # [D, B, Hq, keys, head]
        doc = doc[:, None].expand(-1, branches, -1, -1, -1)
        own, new = own.transpose(1, 2), by_branch(new)[:, :, :, None]
        return torch.cat([doc, own, new], dim=3).repeat_interleave(repeat, dim=2)

    places = torch.arange(doc_k.shape[2], device=q.device), torch.arange(budget, device=q.device)
    seen = torch.cat(
        [
            places[0] < visible[:, :, None],
            places[1] < lengths[:, :, None],
            torch.ones_like(visible[:, :, None], dtype=torch.bool),
        ],
        dim=2,
    )
    if style.window is not None:
        last = (visible + lengths)[:, :, None]
        at = torch.cat(
            [
                places[0].expand(documents, branches, -1),
                visible[:, :, None] + places[1],
                last,
            ],
            dim=2,
        )
        seen &= last - at < style.window
    scores = torch.einsum("dbhe,dbhke->dbhk", by_branch(q), all_of(doc_k, own_k, k)) * 0.2
    if style.soft_cap is not None:
        scores = style.soft_cap * torch.tanh(scores / style.soft_cap)
    scores = scores.masked_fill(~seen[:, :, None], float("-inf"))
    if style.sinks is not None:
        sinks = style.sinks.to(scores.dtype)[None, None, :, None]
        scores = torch.cat([scores, sinks.expand(documents, branches, -1, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., : seen.shape[2]]
    out = torch.einsum("dbhk,dbhke->dbhe", weights, all_of(doc_v, own_v, v))
    return out.permute(2, 0, 1, 3).reshape(1, q.shape[1], documents * branches, head)


@cache
def self_check(
    name: Implementation,
    device: torch.device,
    dtype: torch.dtype,
    head: int,
    repeat: int,
    features: tuple[bool, ...] = (False, False, False),
) -> None:
    """Compare an implementation with the oracle on a small layout, once a process and kind of head.

    features: whether layers have a window, a soft cap, sinks. Raises RuntimeError if they differ.
    """
    from rntp_kernels.tree_attention.tree import prepare

    # Longer than a block of keys; branches that end and hang inside of blocks; a root of its own.
    layout = TreeLayout((150, 40, 17, 1, 70, 33), (-1, 0, 1, 1, 0, -1), (0, 61, 40, 20, 150, 0))
    if name == "flash":
        layout = TreeLayout((150, 1, 33), (-1, -1, -1), (0, 0, 0))
    generator = torch.Generator().manual_seed(0)
    sizes = [(1, heads, layout.num_tokens, head) for heads in (2 * repeat, 2, 2, 2 * repeat)]
    values = [torch.randn(size, generator=generator).to(device, dtype) for size in sizes]

    window, soft_cap, has_sinks = features
    sinks = torch.linspace(-1, 2, 2 * repeat, device=device).to(dtype)

    def outcome(chosen: Implementation, kind: torch.dtype) -> list[Tensor]:
        q, k, v, s = (x.to(kind).clone().requires_grad_() for x in (*values[:3], sinks))
        style = Style(50 if window else None, 2.0 if soft_cap else None, s if has_sinks else None)
        leaves = (q, k, v, s) if has_sinks else (q, k, v)
        with torch.enable_grad():  # who asks first may be sampling
            out = prepare(chosen, layout, q, style=style)(q, k, v, 0.2, style)
            grads = torch.autograd.grad(out, leaves, values[3].to(kind))
        return [x.detach().double() for x in (out, *grads)]

    labels = ["output", *(f"gradient of {x}" for x in ("queries", "keys", "values", "sinks"))]
    require_agreement(
        f"tree attention {name!r} on {device} in {dtype} with heads of {head}",
        labels if has_sinks else labels[:4],
        outcome(name, dtype),
        outcome("dense", dtype),
        outcome("dense", torch.float64),
        f"set {OVERRIDE}=segmented",
    )


def _fastest(q: Tensor, style: Style) -> str:
    if not q.is_cuda:
        return "segmented"
    reason = _obstacle("triton", q, style=style)
    if not reason and q.dtype in _HALVES:
        return "triton"
    if q.dtype in _HALVES:
        _warn(reason)
    return "segmented"


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"tree attention runs in pieces (segmented), slower by far: triton {reason}", stacklevel=2
    )


def _obstacle(name: str, q: Tensor, *, plain: bool = False, style: Style = PLAIN) -> str:
    """Say why an implementation cannot take these tensors; empty if it can."""
    if name == "flash" and style.kind != PLAIN.kind:
        return "has no windows, soft caps or sinks here"
    if name == "flash":
        return _flash_obstacle(q, plain)
    if name == "triton" and q.dtype == torch.float64:
        return "has no float64"
    if name != "triton":
        return ""
    if not has_triton():
        return "needs triton: pip install triton"
    if q.shape[3] > HEADS[-1]:
        return f"takes heads of up to {HEADS[-1]}, not of {q.shape[3]}"
    if not q.is_cuda and not interpreted():
        return "needs CUDA tensors (or TRITON_INTERPRET=1)"
    return ""


def _flash_obstacle(q: Tensor, plain: bool) -> str:
    if not has_flash():
        return "needs flash-attn: pip install flash-attn --no-build-isolation"
    if not plain:
        return "takes plain sequences, and here are branches"
    if q.dtype not in _HALVES or not q.is_cuda:
        return "takes bfloat16 and float16 on CUDA"
    return ""
