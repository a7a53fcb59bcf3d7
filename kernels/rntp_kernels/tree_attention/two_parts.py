"""Attention to a long shared part by the library's kernel and to a short own part by products.

The kernel says the log of each row's sum of exponentials, by which the two softmaxes are joined
(1805.02867). No scores of the long part are ever written: with 64 branches behind 1,024 tokens a
decoding step takes 1.6 ms a layer in place of 3.8 (one core, float32).
"""

import torch
from torch import Tensor

from rntp_kernels.tree_attention.style import Style

FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_LEAST = 512  # tokens of the long part; below, products are as quick


def joins(keys: Tensor, values: Tensor, slots: int, style: Style) -> bool:
    """Whether `attend_parts` does it, and is the quicker way.

    keys, values: of the long part. slots: its tokens.
    """
    return slots >= _LEAST and library_has(keys, values, style)


def library_has(keys: Tensor, values: Tensor, style: Style) -> bool:
    """Whether the library's kernel attends to these, and says its log-sums."""
    return (
        FLASH is not None
        and keys.device.type == "cpu"
        and keys.dtype == torch.float32
        and keys.shape[-1] == values.shape[-1]
        and style.scores_only
        and style.window is None
    )


def attend_parts(
    rows: Tensor,
    long: tuple[Tensor, Tensor, Tensor],
    own: tuple[Tensor, Tensor, Tensor | None],
    scale: float,
) -> Tensor:
    """Attend to both parts under one softmax: rows [D, Hkv, B, R, head] -> the same shape.

    long: keys and values [D, Hkv, n, head] that all branches share, and what is added to the
    scores, float [D, 1, B·R, n]. own: keys and values [D, Hkv, B, t, head], and what is added,
    [D, 1, B, t] or None. Every row has to see a token of each part; no gradient.
    """
    assert FLASH is not None
    keys, values, bias = long
    own_keys, own_values, own_bias = own
    shape = rows.shape
    found, log_sum = FLASH(
        rows.flatten(2, 3), keys, values, 0.0, False, attn_mask=bias, scale=scale
    )
    scores = (rows * scale) @ own_keys.transpose(3, 4)
    if own_bias is not None:
        scores = scores + own_bias[:, :, :, None]
    own_log_sum = scores.logsumexp(dim=-1, keepdim=True)
    of_own = (scores - own_log_sum).exp() @ own_values
    share = torch.sigmoid(log_sum.reshape(shape[:4])[..., None] - own_log_sum)
    return torch.lerp(of_own, found.view(shape), share)
