"""A rank's share of a step, made up: numbers of the sizes that a run has, without a model."""

from collections.abc import Sequence

import torch

from rntp.config import Config
from rntp.objective.loss import Loss
from rntp.objective.quantities import (
    Counts,
    ForwardOutputs,
    OtherLogprobs,
    RewardsAndAdvantages,
)
from rntp.objective.rounding import Rounding
from rntp.training.step_stats import StepStats
from rntp.types import Context, Rollout, Thought

CONTEXT, POSITIONS, THOUGHTS, TOKENS, HORIZON = 256, 2, 8, 32, 16
"""Of each page: tokens, positions, thoughts at each, tokens of a thought; and of a continuation."""

VOCABULARY = 32_768
_TERMS = ("total", "pg", "continuation", "ntp", "kl", "entropy", "router", "clipped_tokens")


def config(pages: int) -> Config:
    """Make the config of a run with so many pages a step."""
    return Config.parse(
        {
            "run": {"name": "exchange", "steps": 1, "dir": "unused"},
            "model": {"spec": "unused"},
            "data": {"source": "unused", "context_tokens": CONTEXT, "docs_per_step": pages},
            "placement": {"positions_per_doc": POSITIONS},
            "thought": {"thoughts_per_position": THOUGHTS, "thought_tokens": TOKENS},
            "reward": {"horizon": HORIZON},
        }
    )


def rollouts(ordinals: Sequence[int]) -> list[Rollout]:
    """Make up sampled pages, a function of their ordinals."""
    found = []
    for ordinal in ordinals:
        drawn = torch.Generator().manual_seed(ordinal)
        ids = torch.randint(VOCABULARY, (CONTEXT,), generator=drawn)
        context = Context(ordinal, f"document {ordinal}", ids, title=f"Page {ordinal}")
        groups = tuple(
            tuple(
                Thought(
                    torch.randint(VOCABULARY, (TOKENS,), generator=drawn),
                    -torch.rand(TOKENS, generator=drawn),
                    closed=True,
                )
                for _ in range(THOUGHTS)
            )
            for _ in range(POSITIONS)
        )
        entropy, nll = torch.rand(2, POSITIONS, generator=drawn)
        places = tuple(CONTEXT // 4 * (k + 1) for k in range(POSITIONS))
        found.append(Rollout(context, places, groups, entropy, nll))
    return found


def step_stats(settings: Config, sampled: Sequence[Rollout], counts: Counts) -> StepStats:
    """Collect these pages, a microbatch each, as after a forward."""
    stats = StepStats(settings, sampled, counts)
    for rollout in sampled:
        drawn = torch.Generator().manual_seed(rollout.context.ordinal)
        shape = POSITIONS, THOUGHTS
        logp = -torch.rand(POSITIONS * THOUGHTS * TOKENS, generator=drawn)
        empty = -torch.rand(POSITIONS, HORIZON, generator=drawn)
        think = -torch.rand(*shape, HORIZON, generator=drawn)
        reward = think.mean(dim=2) - empty.mean(dim=1, keepdim=True)
        outputs = ForwardOutputs(logp, -logp, think, empty, empty, think > -0.5, None)
        rewarded = RewardsAndAdvantages(
            dict.fromkeys(settings.reward.names, reward),
            reward,
            reward,
            empty,
            reward - reward.mean(dim=1, keepdim=True),
            torch.ones(POSITIONS, dtype=torch.bool),
            torch.arange(POSITIONS),
            torch.ones(POSITIONS, dtype=torch.float64),
            Rounding(0.0, len(logp)),
        )
        none = torch.zeros(())
        terms = Loss(**dict.fromkeys(_TERMS, none))
        stats.add(0, (outputs, rewarded, OtherLogprobs(logp)), terms)
    return stats
