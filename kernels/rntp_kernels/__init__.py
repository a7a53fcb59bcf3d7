"""Kernels of rntp: language-model head, sampling and tree attention. They know nothing of RL.

Every kernel has a readable PyTorch reference beside it, and the reference is the specification.
"""

from rntp_kernels.linear_logprob import (
    Shaping,
    float32_logits,
    linear_logprob,
    linear_logprob_top1,
)
from rntp_kernels.sampling import sample
from rntp_kernels.tree_attention import DecodeAttention, Style, TreeAttention, TreeLayout, TwoPasses

__all__ = [
    "DecodeAttention",
    "Shaping",
    "Style",
    "TreeAttention",
    "TreeLayout",
    "TwoPasses",
    "float32_logits",
    "linear_logprob",
    "linear_logprob_top1",
    "sample",
]
