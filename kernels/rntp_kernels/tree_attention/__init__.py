"""Attention over a forest of token segments that share their ancestors' keys and values.

`TreeLayout` says who sees whom. `TreeAttention` runs a whole forest at once, with gradients;
`DecodeAttention` grows branches token by token against one shared copy of their prefix, and takes
what they are given in one pass (`FeedAttention`).
"""

from rntp_kernels.tree_attention.decode import DecodeAttention, PrefixRecorder
from rntp_kernels.tree_attention.dense import dense_attention, dense_mask
from rntp_kernels.tree_attention.feed import FeedAttention
from rntp_kernels.tree_attention.layout import TreeLayout
from rntp_kernels.tree_attention.segmented import segmented_attention
from rntp_kernels.tree_attention.style import PLAIN, Style
from rntp_kernels.tree_attention.tree import TreeAttention, TwoPasses

__all__ = [
    "PLAIN",
    "DecodeAttention",
    "FeedAttention",
    "PrefixRecorder",
    "Style",
    "TreeAttention",
    "TreeLayout",
    "TwoPasses",
    "dense_attention",
    "dense_mask",
    "segmented_attention",
]
