"""Rates of kernels, every one beside what the device reaches with a plain matrix product.

Needs nothing of the trainer but its clock, nor what the trainer needs installed.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rntp_kernels import linear_logprob_top1, sample
from rntp_kernels.tree_attention import PLAIN
from rntp_kernels.tree_attention.tree import prepare
from torch import Tensor

from gpu_stages.setting import Setting, comb, visible_pairs
from rntp.bench import peers
from rntp.bench.clock import interleaved, matmul_rate

# Rows of the head; logits above this many are not kept by the plain way.
ROWS = 8192
_PLAIN = 2_000_000_000


def ceilings(setting: Setting) -> dict[str, Any]:
    """Time the fastest matrix product and copy."""
    device = torch.device(setting.device)
    rates = {
        f"matmul {str(dtype).removeprefix('torch.')}, TFLOP/s": matmul_rate(dtype, device) / 1e12
        for dtype in (torch.bfloat16, torch.float32)
    }
    numbers = 1_000_000 if setting.tiny else 4_000_000_000
    source = torch.ones(numbers, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timing = interleaved({"copy": lambda: target.copy_(source)}, repeats=5)["copy"]
    rates["copy (read and write), GB/s"] = 2 * numbers / min(timing.seconds) / 1e9
    return rates


def head(setting: Setting) -> dict[str, Any]:
    """Time scores alone (2THV), and forward with backward (6THV), of all that are installed."""
    found: dict[str, Any] = {}
    for name, (width, vocabulary) in setting.heads.items():
        found[name] = _head(setting, width, vocabulary)
        _free()
    return found


def sampling(setting: Setting) -> dict[str, Any]:
    """Time a draw for every branch, from logits that are there: one read of them is the floor."""
    found: dict[str, Any] = {}
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    names: list[Any] = ["reference"] if setting.device == "cpu" else ["reference", "triton"]
    for branches in (4,) if setting.tiny else (128, 1024):
        vocabulary = 300 if setting.tiny else 151_936
        logits = torch.randn(branches, vocabulary, device=setting.device).to(dtype)
        uniforms = torch.rand(branches, device=setting.device, dtype=torch.float64)
        ways = {name: partial(sample, logits, uniforms, 1.0, name) for name in names}
        timings = interleaved(ways, repeats=9)
        size = logits.numel() * logits.element_size()
        found[f"{branches} branches"] = {
            name: {"ms": t.median * 1e3, "GB/s of logits": size / t.median / 1e9}
            for name, t in timings.items()
        }
    return found


def attention(setting: Setting) -> dict[str, Any]:
    """Time tree attention on a page with all of its thoughts, forward and with backward."""
    layout = comb(setting.comb)
    pairs = visible_pairs(layout)
    found: dict[str, Any] = {"tokens": layout.num_tokens, "visible pairs": pairs}
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    rate = matmul_rate(dtype, torch.device(setting.device))
    names: list[Any] = ["segmented"] if setting.device == "cpu" else ["triton", "segmented"]
    for model, (heads, kv_heads, head_size) in setting.attentions.items():
        sizes = [(1, n, layout.num_tokens, head_size) for n in (heads, kv_heads, kv_heads, heads)]
        q, k, v, d_out = (torch.randn(s, device=setting.device).to(dtype) for s in sizes)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        ways: dict[str, Callable[[], object]] = {}
        plans = {}
        for name in names:
            begun = time.perf_counter()
            attend = partial(prepare(name, layout, q), style=PLAIN)
            plans[name] = (time.perf_counter() - begun) * 1e3
            ways[f"{name} forward"] = partial(_without_gradient, attend, q, k, v)
            ways[f"{name} both"] = partial(_with_gradient, attend, leaves, d_out)
        timings = interleaved(ways, repeats=5)
        flop = 4.0 * head_size * heads * pairs
        found[model] = {
            way: _rate(t.median, flop * (1 if way.endswith("forward") else 3.5), rate)
            for way, t in timings.items()
        } | {"host, making the tables once a step, ms": plans}
    return found


def _head(setting: Setting, width: int, vocabulary: int) -> dict[str, Any]:
    rows = 40 if setting.tiny else ROWS
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    device = torch.device(setting.device)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, device=device)
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(device)
    # Hidden states that lean to their targets, as a language model's do: an entropy of a few nats.
    lean = 8.0 / width * weight[targets] + 0.05 * torch.randn(rows, width, device=device)
    hidden = lean.to(dtype).requires_grad_()
    weight = weight.to(dtype).requires_grad_()
    signs = torch.randn(rows, generator=generator).to(device)
    flop = 2.0 * rows * width * vocabulary
    rate = matmul_rate(dtype, device)

    def both(scores: Callable[..., tuple[Tensor, ...]]) -> Callable[[], object]:
        def work() -> None:
            hidden.grad = weight.grad = None
            logp, entropy, *_ = scores(hidden, weight, targets)
            (signs * logp + 0.01 * entropy).sum().backward()

        return work

    def cleared(work: Callable[[], object]) -> Callable[[], object]:
        def clean() -> object:
            hidden.grad = weight.grad = None
            return work()

        return clean

    def score(name: Any) -> Callable[[], object]:
        def work() -> None:
            with torch.no_grad():
                linear_logprob_top1(hidden, weight, targets, implementation=name)

        return work

    ours = ["chunked"] if setting.device == "cpu" else ["chunked", "chunked-triton", "triton"]
    scores = {f"rntp {name}": score(name) for name in ours}
    backward = {
        f"rntp {name}": both(partial(linear_logprob_top1, implementation=name))
        for name in ours
        if name != "triton"
    }
    if rows * vocabulary <= _PLAIN:
        backward["plain autograd"] = both(peers.plain_head)
    others, skipped = peers.heads(hidden, weight, targets, signs)
    backward |= {name: cleared(work) for name, work in others.items()}
    _, entropy, _ = linear_logprob_top1(hidden.detach(), weight.detach(), targets)
    return {
        "rows": rows,
        "entropy, nats": float(entropy.mean()),
        "score": _timed(scores, flop, rate, setting),
        "forward and backward": _timed(backward, 3 * flop, rate, setting),
        "skipped": skipped,
    }


def _timed(
    ways: dict[str, Callable[[], object]], flop: float, rate: float, setting: Setting
) -> dict[str, Any]:
    memory = {}
    for name, work in ways.items():
        _free()
        before = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        work()
        memory[name] = _peak_gb(setting) - before / 1e9
    timings = interleaved(ways, repeats=5)
    return {
        name: _rate(timing.median, flop, rate)
        | {"spread": timing.spread, "peak memory beyond the operands, GB": memory[name]}
        for name, timing in timings.items()
    }


def _rate(seconds: float, flop: float, ceiling: float) -> dict[str, float]:
    return {
        "ms": seconds * 1e3,
        "TFLOP/s": flop / seconds / 1e12,
        "share of the matmul ceiling": flop / seconds / ceiling,
    }


def _without_gradient(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> None:
    with torch.no_grad():
        attend(q, k, v, 0.1)


def _with_gradient(attend: Callable[..., Tensor], leaves: list[Tensor], d_out: Tensor) -> None:
    torch.autograd.grad(attend(*leaves, 0.1), leaves, d_out)


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peak_gb(setting: Setting) -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if setting.device == "cuda" else 0.0
