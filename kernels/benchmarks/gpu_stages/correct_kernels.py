"""Kernels against their references: each stage raises where one computes something else.

Needs nothing of the trainer but its sizes, nor what the trainer needs installed.
"""

import itertools
from typing import Any

import torch
from rntp_kernels import Shaping, TreeLayout, linear_logprob_top1, sample
from rntp_kernels.choice import require_agreement
from rntp_kernels.tree_attention import PLAIN, selection
from rntp_kernels.tree_attention.tree import prepare
from torch import Tensor

from gpu_stages.setting import Setting, comb

LAYOUTS = {
    "nested": TreeLayout((150, 40, 17, 1, 70, 33), (-1, 0, 1, 1, 0, -1), (0, 61, 40, 20, 150, 0)),
    "sees nothing, and single tokens": TreeLayout(
        (1, 1, 3, 170, 1, 64), (-1, 0, 0, 1, 3, 3), (0, 0, 1, 0, 170, 64)
    ),
    "several roots": TreeLayout((5, 128, 300, 2), (-1, -1, 1, -1), (0, 0, 128, 0)),
}
# rows, width, vocabulary, scale of the hidden states, temperature, shaping
HEAD_CASES: dict[str, tuple[int, int, int, float, float, Shaping]] = {
    "ordinary": (301, 96, 1500, 0.3, 0.7, Shaping()),
    "peaked": (67, 64, 1031, 8.0, 1.0, Shaping()),
    "flat": (67, 64, 1031, 0.001, 1.5, Shaping()),
    "soft cap, padding": (130, 160, 2050, 0.5, 1.3, Shaping(20.0, 2041)),
    "one row": (1, 64, 129, 0.3, 1.0, Shaping()),
}


def head(setting: Setting) -> dict[str, Any]:
    """Check log-prob, entropy and both gradients of every implementation against float64."""
    errors: dict[str, dict[str, float]] = {}
    names = ["chunked"] if setting.device == "cpu" else ["chunked", "chunked-triton", "triton"]
    for dtype in setting.types:
        for case, sizes in HEAD_CASES.items():
            exact, usual = (
                _head(setting, kind, "reference", sizes, dtype) for kind in (torch.float64, dtype)
            )
            for name in names:
                for drop in (False, True):
                    own = _head(setting, dtype, name, sizes, dtype, drop)
                    label = f"{name}, {case}, {_name(dtype)}"
                    errors[label] = _errors(own, exact)
                    require_agreement(label, HEAD_PARTS, own, usual, exact, "do not use it")
    return {"relative errors": errors, "far rows": _far_rows(setting)}


def tree(setting: Setting) -> dict[str, Any]:
    """Check output and gradients of tree attention against the oracle in float64."""
    names = ["segmented"] if setting.device == "cpu" else ["segmented", "triton"]
    layouts = {**LAYOUTS, "comb": comb(setting.small)}
    errors: dict[str, dict[str, float]] = {}
    for dtype in setting.types:
        heads = [(4, 2, 16)] if setting.tiny else [(4, 2, 64), (9, 3, 64), (4, 2, 128)]
        if dtype == torch.float32:
            heads = heads[:1]  # compiling three products for one takes its time
        for shape in heads:
            for case, layout in layouts.items():
                for name in names:
                    label = f"{name}, {case}, {_name(dtype)}, heads {shape}"
                    errors[label] = _tree(setting, name, layout, dtype, shape)
    return {"relative errors": errors, "windows, soft caps and sinks": _styles(setting)}


def _styles(setting: Setting) -> str:
    """Check every combination, as a run does at its first layer of the kind."""
    if setting.device == "cpu":
        return "not run"
    device = torch.device(setting.device)
    for does in itertools.product((False, True), repeat=3):
        for head in (64, 128):
            kind = device, torch.bfloat16, head, 2, does
            selection.self_check("triton", *kind)
            selection.check_decode(*kind)
    return "as the oracle"


def sampling(setting: Setting) -> dict[str, Any]:
    """Check tokens and log-probs of every implementation against float64, for the same numbers."""
    found: dict[str, Any] = {}
    rows = 64
    for dtype in setting.types:
        for vocabulary in (300,) if setting.tiny else (49_152, 151_936):
            generator = torch.Generator().manual_seed(vocabulary)
            logits = (3 * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
            logits = logits.to(setting.device)
            uniforms = torch.rand(rows, generator=generator, dtype=torch.float64)
            uniforms = uniforms.to(setting.device)
            true_ids, true_logprob = sample(logits.double(), uniforms, 0.8, "reference")
            ids, logprob = sample(logits, uniforms, 0.8)
            same = ids == true_ids
            label = f"{_name(dtype)}, {vocabulary}"
            different = int((~same).sum())
            gap = float((logprob - true_logprob)[same].abs().max())
            found[label] = {"tokens that differ": different, "of": rows, "nats": gap}
            # A number within rounding of the border between two tokens may fall on either side.
            if different > 2 or not gap < 1e-4:
                raise AssertionError(f"sampling in {label}: {found[label]}")
    return found


HEAD_PARTS = ("log-prob", "entropy", "gradient of hidden", "gradient of weight")
TREE_PARTS = ("output", "gradient of queries", "gradient of keys", "gradient of values")


def _head(
    setting: Setting,
    kind: torch.dtype,
    name: Any,
    sizes: tuple[int, int, int, float, float, Shaping],
    dtype: torch.dtype,
    drop: bool = False,
) -> list[Tensor]:
    """Compute a case in type `kind`, of operands that `dtype` can hold."""
    rows, width, vocabulary, scale, temperature, shaping = sizes
    generator = torch.Generator().manual_seed(rows)

    def values(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    hidden, weight = (values(rows, width) * scale).to(dtype), values(vocabulary, width).to(dtype)
    targets = torch.randint(vocabulary - 9, (rows,), generator=generator)
    signs, entropic = values(rows), values(rows) * 0.3
    if rows > 9:
        signs[3:9] = entropic[3:9] = 0  # of a group without a difference
    device = setting.device
    leaves = [x.to(device, kind).requires_grad_() for x in (hidden, weight)]
    logprob, entropy, _ = linear_logprob_top1(
        *leaves,
        targets.to(device),
        temperature=temperature,
        shaping=shaping,
        chunk_rows=64,
        drop_zero_rows=drop,
        implementation=name,
    )
    loss = (logprob * signs.to(device) + entropy * entropic.to(device)).sum()
    grads = torch.autograd.grad(loss, leaves)
    return [x.detach().double() for x in (logprob, entropy, *grads)]


def _far_rows(setting: Setting) -> str:
    """Check logits whose places do not fit 32 bits."""
    if setting.tiny or setting.device == "cpu":
        return "not run"
    rows, width, vocabulary = 15_000, 64, 151_936
    generator = torch.Generator(setting.device).manual_seed(0)
    where = {"device": setting.device, "generator": generator}
    hidden = torch.randn(rows, width, **where).bfloat16()
    weight = torch.randn(vocabulary, width, **where).bfloat16()
    targets = torch.randint(vocabulary, (rows,), **where)
    with torch.no_grad():
        one, few = (
            linear_logprob_top1(
                hidden, weight, targets, chunk_rows=chunk, implementation="chunked-triton"
            )[0]
            for chunk in (rows, 1000)
        )
    gap = float((one - few).abs().max())
    if not gap < 1e-2:
        raise AssertionError(f"log-probs of far rows are {gap:.2g} nats off")
    return f"{gap:.2g} nats apart"


def _tree(
    setting: Setting,
    name: Any,
    layout: TreeLayout,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
) -> dict[str, float]:
    heads, kv_heads, head = shape
    generator = torch.Generator().manual_seed(head)
    values = [
        torch.randn(1, layout.num_tokens, n, head, generator=generator).to(setting.device, dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    ]

    def outcome(chosen: Any, kind: torch.dtype) -> list[Tensor]:
        q, k, v, d_out = (x.to(kind).transpose(1, 2) for x in values)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = prepare(chosen, layout, q)(*leaves, 0.2, PLAIN)
        grads = torch.autograd.grad(out, leaves, d_out)
        return [x.detach().double() for x in (out, *grads)]

    own, usual = outcome(name, dtype), outcome("dense", dtype)
    exact = outcome("dense", torch.float64)
    require_agreement(
        f"{name} in {_name(dtype)} with heads {shape} on {layout}",
        TREE_PARTS,
        own,
        usual,
        exact,
        "do not use it",
    )
    return _errors(own, exact, TREE_PARTS)


def _errors(
    own: list[Tensor], exact: list[Tensor], parts: tuple[str, ...] = HEAD_PARTS
) -> dict[str, float]:
    return {
        part: float((mine - true).norm() / true.norm().clamp_min(1e-30))
        for part, mine, true in zip(parts, own, exact, strict=True)
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
