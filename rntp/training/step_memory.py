"""Whether a step fits into memory: by an estimate, and where that cannot tell by trying a page."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from rntp.config import Config
from rntp.model import LanguageModel, cast_parameters
from rntp.model.reading import LossReads
from rntp.objective.forward import build_tree
from rntp.runtime.memory import size, total_bytes
from rntp.runtime.ranks import SINGLE_RANK, Ranks
from rntp.training.estimate import Shape, peak_memory
from rntp.types import Context, Rollout, Thought

MOST_TOKENS = 2048
"""Of a page that is tried, with its thoughts: seconds on a CPU."""

DOUBT = 3.0
"""A step whose estimate is less than memory over this, or more than memory times this, is not tried
before the decision: the estimate is not that wrong."""


@dataclass(frozen=True)
class StepMemory:
    """What a step takes of memory at the most, in bytes, and what there is for a rank.

    whole: where layers keep all that the backward wants. again: where they keep their inputs and
    compute the rest again. measured: activations are of a page that was tried, not by a formula.
    asked: `parallel.activation_checkpointing`.
    """

    whole: float
    again: float
    there: int
    measured: bool
    asked: bool | Literal["auto"]

    @classmethod
    def of(cls, config: Config, model: LanguageModel, ranks: Ranks = SINGLE_RANK) -> "StepMemory":
        """By the estimate, where that leaves no doubt; else by one page's measured activations."""
        shape = Shape.of(model.hf, shares=model.shares)
        there = total_bytes(model.device)
        if model.device.type == "cpu":
            there //= ranks.on_this_machine
        asked = config.parallel.activation_checkpointing
        needed = partial(peak_memory, config, shape, ranks.size)
        whole, again = (needed(recompute=r) for r in (False, True))
        doubtful = there / DOUBT < whole < there * DOUBT
        # A model that shares nothing computes pieces of a batch again as it is.
        if asked != "auto" or not doubtful or not model.shares:
            return cls(whole, again, there, measured=False, asked=asked)
        try:
            kept = kept_bytes_per_token(model, config)
        except torch.OutOfMemoryError:  # a GPU's; a CPU has no such thing
            return cls(math.inf, again, there, measured=True, asked=asked)
        whole, again = (needed(recompute=r, kept_per_token=kept) for r in (False, True))
        return cls(whole, again, there, measured=True, asked=asked)

    @property
    def recomputes(self) -> bool:
        """Whether layers keep only their inputs: as asked, or where a step would not fit."""
        return self.whole > self.there if self.asked == "auto" else self.asked

    def warnings(self, *, recompute: bool) -> list[str]:
        """Say so where a step may not fit, which is no proof: the run goes on. recompute: as all
        ranks do."""
        needed = self.again if recompute else self.whole
        if needed <= self.there:
            return []
        off = "" if recompute else "parallel.activation_checkpointing is off: set it to auto; or "
        return [
            f"a step may take about {size(needed)} of memory and there are {size(self.there)}; "
            f"should it be killed: {off}lower parallel.tokens_per_microbatch, or, since a context "
            "with its branches is never split, data.context_tokens, reward.horizon or the thoughts "
            "of a context"
        ]


def kept_bytes_per_token(model: LanguageModel, config: Config) -> float:
    """Bytes that the backward of all layers keeps for a token of a tree.

    The forward with gradients of a made-up page at the config's lengths, as far as `MOST_TOKENS`
    allows. What is kept is counted tensor by tensor, each storage once and weights not at all, so
    that it does not depend on what the allocator has at hand; the same on CPU and GPU.
    """
    tree = build_tree(model, [_page(config)], 1, LossReads(context=True))
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    computed = _as_computed(model.hf, getattr(torch, config.model.dtype))
    with computed as weights, saved_tensors_hooks(count, lambda tensor: tensor):
        trunk = tree.tree.run(model)
    return sum(kept.values()) / len(trunk.hidden)


@contextmanager
def _as_computed(hf: PreTrainedModel, dtype: torch.dtype) -> Iterator[set[int]]:
    """Let weights, which training splits into masters and a copy later, be the copy for a while.
    Yields where their storages are."""
    masters = [(weight, weight.data) for weight in hf.parameters()]
    cast_parameters(hf, dtype)
    try:
        yield {weight.untyped_storage().data_ptr() for weight in hf.parameters()}
    finally:
        for weight, master in masters:
            weight.data = master


def _page(config: Config) -> Rollout:
    """Make up a page of full length with one position in its middle, and thoughts of full length
    there: as many as a group has, if they fit."""
    length = min(config.data.context_tokens, MOST_TOKENS // 2)
    thought = min(max(config.thought.thought_tokens, 1), MOST_TOKENS // 4)
    thoughts = min(config.thought.thoughts_per_position, (MOST_TOKENS - length) // thought)
    ids = torch.arange(length) % 7
    none = torch.zeros(1)
    drawn = torch.arange(thought) % 7
    group = tuple(Thought(drawn, torch.zeros(thought), closed=False) for _ in range(thoughts))
    return Rollout(Context(0, "made up", ids), (length // 2,), (group,), none, none)
