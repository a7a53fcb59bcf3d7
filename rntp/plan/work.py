"""What a rank does in a step, in amounts that cost time: FLOP, bytes, launches. Pure functions.

Phases are those of a step's timers: rollout, train (forward and backward), update, rest. The time
of a phase is the sum of its amounts, each times what one of it costs on a machine
(`rntp.plan.rates`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rntp.config import Config
from rntp.objective.outside import asks_judges
from rntp.runtime.packing import to_bytes
from rntp.training.estimate import Shape, Tokens, attention_flop, flop_parts, number_bytes
from rntp.training.step_table import StepTable
from rntp.types import Page

PHASES = ("rollout", "train", "update", "rest")
MEETINGS = {"rollout": 2, "train": 1, "update": 2, "rest": 4}
"""Times that all ranks agree in a phase: `rntp.runtime.ranks`, as the trainer uses it."""

Amounts = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Share:
    """A rank's share of a step. config: with as many documents as the largest share has. ranks: in
    all. recompute: with activation checkpointing."""

    config: Config
    ranks: int = 1
    recompute: bool = False

    @classmethod
    def of(cls, config: Config, ranks: int = 1, *, recompute: bool = False) -> "Share":
        """Cut a step: the largest share decides how long it takes."""
        docs = math.ceil(config.data.docs_per_step / ranks)
        replay = min(config.data.replay_docs, docs - 1)
        data = config.data.model_copy(update={"docs_per_step": docs, "replay_docs": replay})
        return cls(config.model_copy(update={"data": data}), ranks, recompute)


def amounts(share: Share, shape: Shape) -> dict[str, dict[str, float]]:
    """List by phase what the share takes, by what it costs.

    once: 1 a step, in train 1 a microbatch. decode_launches, launches: a layer's operations in a
    step of decoding, and in a pass over a microbatch. decode_bytes: weights and keys that decoding
    reads. …_flop: of products. activation_bytes: what layers write and read beside products.
    thoughts: records. moved_bytes: of weights, gradients and moments in an update. gathered_bytes,
    reduced_bytes, exchanged_bytes: what a rank takes in from the others. hops: messages from a rank
    to the next, one behind the other.
    """
    config, tokens = share.config, Tokens.of(share.config)
    flop, attention = flop_parts(config, shape, tokens), attention_flop(config, shape)
    wide, narrow = number_bytes(config)
    thoughts = config.data.docs_per_step * (
        config.placement.positions_per_doc * config.thought.thoughts_per_position
    )
    batches = math.ceil(config.data.docs_per_step / config.rollout.docs_per_batch)
    weights = shape.trunk + shape.vocabulary * shape.hidden
    steps = batches * config.budget_tokens * (tokens.sampled > 0)
    passes, forests = _passes(config, shape, tokens)
    learned = tokens.learning if shape.shares else tokens.plain_learning
    extra = flop["forward, layers"] if share.recompute else 0.0
    width = 16 * shape.hidden + 8 * shape.intermediate
    others = (share.ranks - 1) / share.ranks
    # A ring goes round once to gather or to reduce a group of weights, twice to agree.
    round_ = share.ranks - 1
    hops = {phase: 2.0 * round_ * number for phase, number in MEETINGS.items()}
    groups = float(round_ * (shape.layers + 1))
    kept = config.data.docs_per_step * config.longest_context + thoughts * config.budget_tokens / 2
    ids = 4.0 * config.data.docs_per_step * config.data.context_tokens
    keys = 2 * shape.layers * shape.kv_width * kept * config.budget_tokens * (steps > 0)
    return {
        "rollout": {
            "once": 1.0,
            "decode_launches": float(steps * shape.layers),
            "decode_bytes": narrow * (steps * weights + keys),
            "decode_flop": flop["decoding thoughts"] + attention["decoding thoughts"],
            "prefill_flop": flop["reading pages to sample"] + attention["reading pages to sample"],
            "thoughts": float(thoughts),
            "hops": hops["rollout"],
        },
        "train": {
            "once": float(forests),
            "launches": float(passes * shape.layers),
            "layers_flop": flop["forward, layers"]
            + flop["backward, layers"]
            + flop["other weights"]
            + flop["judge"]
            + extra,
            "head_flop": flop["forward, head"] + flop["backward, head"],
            "attention_flop": attention["forward, layers"] * (2 if share.recompute else 1)
            + attention["backward, layers"],
            "activation_bytes": float(shape.layers * width * narrow * learned),
            "reduced_bytes": others * shape.parameters * wide,
            "hops": groups + hops["train"],
        },
        "update": {
            "once": 1.0,
            "launches": float(shape.layers),
            # Gradient, master and two moments are read, the last three and the copy written.
            "moved_bytes": shape.parameters * (7 * wide / share.ranks + narrow),
            "gathered_bytes": others * shape.parameters * narrow,
            "hops": groups + hops["update"],
        },
        "rest": {
            "once": 1.0,
            "thoughts": float(thoughts),
            # Rank 0 takes in the ids of all pages besides, for their digest.
            "exchanged_bytes": others * share.ranks * (exchanged_bytes(config) + ids),
            "hops": hops["rest"],
        },
    }


def exchanged_bytes(config: Config) -> float:
    """Bytes of the rows that a share sends to every other rank at the end of a step: what
    `StepTable.packed` makes of it; see `rntp.training.step_table`."""
    one, two = (len(to_bytes(_table(config, pages).packed())) for pages in (1, 2))
    return float(one + (config.data.docs_per_step - 1) * (two - one))


def _table(config: Config, pages: int) -> StepTable:
    """Rows of so many pages, all zeros."""
    positions, thoughts = (
        config.placement.positions_per_doc,
        config.thought.thoughts_per_position,
    )
    each_K, before_K2 = torch.zeros(positions), torch.zeros(positions, 2, dtype=torch.int64)
    page = Page(0, 0, None, 0, tuple(range(positions)), before_K2, each_K, each_K)
    none_PG = torch.zeros(pages * positions, thoughts, dtype=torch.float64)
    none_P = torch.zeros(pages * positions, dtype=torch.float64)
    verdict_PG = none_PG if asks_judges(config) else none_PG[:, :0]
    return StepTable([page] * pages, none_PG, none_PG, none_PG, none_P, 0.0, [0], verdict_PG)


def _passes(config: Config, shape: Shape, tokens: Tokens) -> tuple[int, int]:
    """Passes over a layer in a step, and microbatches: forward, backward and what is run again."""
    docs, most = config.data.docs_per_step, config.parallel.tokens_per_microbatch
    each = (tokens.tree if shape.shares else tokens.plain) / docs
    forests = math.ceil(docs / max(1, int(most // each)))
    epochs = config.objective.epochs_per_rollout
    passes = 3 * epochs + config.objective.needs_whole_step
    return forests * passes, forests
