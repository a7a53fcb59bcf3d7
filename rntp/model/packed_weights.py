"""Weights laid out for the CPU's bfloat16 products.

A product spends part of its time on bringing the weight into the order that the processor's
instructions want: a third with the few rows of a decoding step, a tenth to a quarter with the rows
of a tree. A step multiplies with the same weights once a token that it samples, and then again, so
they are brought into that order once; the results are the same to the bit (2 CPU cores, 135M
parameters, 0.07 s to lay them out: 32 branches of 24 tokens 2.05 s against 2.37 s).

The head's products have float32 results (`rntp_kernels.float32_logits`); what is kept of it is its
weight in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from rntp.model.head import WEIGHT_FLOAT32, weight_of
from rntp.model.sharding import is_sharded

# Fewer decoding steps than this do not earn what laying the weights out costs.
MIN_STEPS = 8


def packing_pays(hf: nn.Module, steps: int) -> bool:
    """Tell whether packing pays for so many decoding steps: model and processor multiply in
    bfloat16."""
    return (
        steps >= MIN_STEPS
        and torch.backends.mkldnn.is_available()
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        and not is_sharded(hf)  # gathered weights come and go
        and any(True for _ in _packable(hf))
    )


@contextmanager
def packed_weights(hf: nn.Module) -> Iterator[None]:
    """Inside, every plain linear layer of the model multiplies with a packed copy of its weight,
    with gradients as ever.

    The copies take as much memory as the weights, the head's twice as much. Weights that change
    inside are not seen. Layers of a subclass (adapters) are left alone, and so are those whose
    forward is somebody else's, or packed already.
    """
    layers = list(_packable(hf))
    head = _head_of(hf)
    kept = head is not None and WEIGHT_FLOAT32 not in vars(head)
    try:
        if head is not None and kept:
            vars(head)[WEIGHT_FLOAT32] = weight_of(head).detach().float()
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
            layer.__dict__["forward"] = partial(_product, layer, packed)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
        if head is not None and kept:
            vars(head).pop(WEIGHT_FLOAT32, None)


def _head_of(hf: nn.Module) -> nn.Module | None:
    """Return the output embedding, if its weight is one that a float32 copy is good for."""
    head = hf.get_output_embeddings() if isinstance(hf, PreTrainedModel) else None
    weight = getattr(head, "weight", None)
    return head if isinstance(weight, Tensor) and _is_packable(weight) else None


def _is_packable(weight: Tensor) -> bool:
    """Whether a weight is a whole parameter in bfloat16 on the CPU."""
    whole = type(weight) is nn.Parameter and weight.device.type == "cpu"
    return whole and weight.dtype == torch.bfloat16


def _packable(hf: nn.Module) -> Iterator[nn.Linear]:
    """List the plain linear layers in bfloat16 on the CPU, but for the head."""
    head = _head_of(hf)
    for layer in hf.modules():
        # A subclass may compute anything; an instance's own forward is no longer the class's.
        if type(layer) is not nn.Linear or layer is head or "forward" in layer.__dict__:
            continue
        if _is_packable(layer.weight):
            yield layer


def _product(layer: nn.Linear, packed: Tensor, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad):
        # Rows and columns alone: more dimensions would make the result a view, which the model may
        # not change in place then (OLMo's `clip_qkv`).
        rows = _PackedLinear.apply(x.flatten(end_dim=-2), layer.weight, layer.bias, packed)
        return rows.unflatten(0, x.shape[:-1])
    return _multiply(x, packed, layer.bias)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product


class _PackedLinear(torch.autograd.Function):
    """(x [N, in], weight [out, in], bias [out] or None, packed) -> [N, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, packed, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = gradient @ weight
        if ctx.needs_input_grad[1]:
            d_weight = gradient.T @ x
        if ctx.needs_input_grad[2]:
            d_bias = gradient.sum(dim=0)
        return d_x, d_weight, d_bias, None
