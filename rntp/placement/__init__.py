"""Placement policies: one file each, a pure function that scores the eligible positions.

The K positions with the highest scores are thought at, those inside the bands of the config before
all others. Entropies and losses of the next token cost the head over the page and nothing else: the
trunk reads it for sampling anyhow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rntp.registry import Registry
from rntp.types import Context, NextTokenStats, PlacementInputs

Policy = Callable[[PlacementInputs], Tensor]
# (context, what the model expects of it) -> positions, ascending.
Place = Callable[[Context, NextTokenStats], tuple[int, ...]]
REGISTRY: Registry[Policy] = Registry("placement policy")
register = REGISTRY.register


@dataclass(frozen=True)
class Bands:
    """Which positions are worth a thought, by the no-think prediction; nats, both ends included."""

    entropy: tuple[float, float] = (0.0, 100.0)
    surprise: tuple[float, float] = (0.0, 100.0)

    def hold(self, entropy: Tensor, nll: Tensor) -> Tensor:
        """bool, of the shape of both."""
        (low, high), (least, most) = self.entropy, self.surprise
        return (low <= entropy) & (entropy <= high) & (least <= nll) & (nll <= most)


ANYWHERE = Bands()  # what a config says that sets none: nobody has to look


def place(
    policy: Policy,
    inputs: PlacementInputs,
    *,
    min_prefix: int,
    horizon: int,
    bands: Bands = ANYWHERE,
) -> tuple[int, ...]:
    """The `inputs.count` best positions p, ascending, with min_prefix <= p <= L − horizon.

    inputs: of the whole context. Positions outside the bands fill up where too few are inside.
    Raises ValueError if there are fewer eligible positions.
    """
    first, last = min_prefix, len(inputs.noise_L) - horizon
    if last - first + 1 < inputs.count:
        raise ValueError(f"{max(0, last - first + 1)} eligible positions, {inputs.count} wanted")
    eligible = inputs.between(first, last + 1)
    score = policy(eligible)
    if bands != ANYWHERE:
        score = _inside_first(score, bands.hold(eligible.entropy_L, eligible.nll_L))
    best = score.topk(inputs.count).indices + first
    return tuple(sorted(best.tolist()))


def weighted_sample(weight_L: Tensor, noise_L: Tensor) -> Tensor:
    """Scores whose K highest are a sample without replacement, in proportion to the weights.

    Gumbel top-k (1903.06059). weight_L: positive. noise_L: uniform in [0, 1).
    """
    return weight_L.log() - (-noise_L.log()).log()


def _inside_first(score: Tensor, inside: Tensor) -> Tensor:
    """The order of the scores, after the order of in or out."""
    if inside.all():
        return score
    rank = torch.empty_like(score)
    rank[score.argsort()] = torch.arange(len(score), dtype=score.dtype)
    return rank + inside * len(score)


from rntp.placement import (  # noqa: E402
    by_class,
    entropy,
    even,
    gate,
    learnability,
    oracle,
    random,
    selector,
    sentence_starts,
    surprise,
    tiers,
)

__all__ = [
    "REGISTRY",
    "Bands",
    "Place",
    "Policy",
    "by_class",
    "entropy",
    "even",
    "gate",
    "learnability",
    "oracle",
    "place",
    "random",
    "register",
    "selector",
    "sentence_starts",
    "surprise",
    "tiers",
    "weighted_sample",
]
