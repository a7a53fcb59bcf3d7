"""Positions where a few thoughts win and most do not yet: a learned selector (2512.03442).

A learned selector of positions: what the record behind that policy predicts and learns.

PretrainZero (2512.03442) pays the one who chooses what to predict 1 − accuracy, and nothing if
nobody was right: hard, but not impossible. Gains are in nats, so here the yield of a group is

    max_i g⁺_i − mean_i g⁺_i,    g⁺ = max(0, gain)

which is theirs for gains of 0 and 1, with the zero guard, and 0 where all thoughts do equally well.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rntp.placement import register, weighted_sample
from rntp.types import Context, NextTokenStats, Page, PlacementInputs

# Least weight, as a share of the context's largest: what earned nothing is tried again some day.
FLOOR = 0.02


@register("selector")
def selector(inputs: PlacementInputs) -> Tensor:
    """A weighted sample, weight = max(0, predicted yield) + floor, [L]; see `Selector`."""
    predicted = inputs.learned_L.double().clamp_min(0)
    weight = predicted + FLOOR * predicted.max().clamp_min(1e-30)
    return weighted_sample(weight, inputs.noise_L)


BUCKETS = 4096  # of each feature
FEATURES = 3
RATE = 0.5  # AdaGrad's step
EDGES = (0.02, 0.1, 0.5, 1.0, 2.0, 4.0)  # nats
UNSEEN = 1.0  # nats: optimistic, so that every kind of position is tried


class Selector:
    """Linear regression of the yield on hashed features of a position, one AdaGrad step a group.

    Features: the token before; the two tokens before; entropy and loss of the no-think prediction,
    in tiers. All are known before anybody thinks.
    """

    def __init__(self) -> None:
        self._weight = torch.full((FEATURES, BUCKETS), UNSEEN / FEATURES, dtype=torch.float64)
        self._squares = torch.zeros(FEATURES, BUCKETS, dtype=torch.float64)

    def of(self, context: Context, next_token: NextTokenStats) -> Tensor:
        """Predicted yield, nats, float32 [L]."""
        ids = context.token_ids
        kinds = _kinds(ids.roll(1), ids.roll(2), next_token.entropy_L, next_token.nll_L)
        return self._predict(kinds).float()

    def observe(self, pages: Sequence[Page], reward_PG: Tensor, gain_PG: Tensor) -> None:
        """Take in the groups of a step, in order. gain_PG: nats per continuation token."""
        before, second = torch.cat([page.before_K2 for page in pages]).unbind(dim=1)
        entropy = torch.cat([page.entropy_K for page in pages])
        nll = torch.cat([page.nll_K for page in pages])
        kinds = _kinds(before, second, entropy, nll)
        feature = torch.arange(FEATURES)
        for kind, target in zip(kinds, yields(gain_PG.cpu().double()).tolist(), strict=True):
            error = float(self._weight[feature, kind].sum()) - target
            self._squares[feature, kind] += error**2
            root = self._squares[feature, kind].sqrt().clamp_min(1e-12)
            self._weight[feature, kind] -= RATE * error / root / FEATURES

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {"weight": self._weight, "squares": self._squares}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self._weight.copy_(tensors["weight"])
        self._squares.copy_(tensors["squares"])

    def _predict(self, kinds: Tensor) -> Tensor:
        return self._weight[torch.arange(FEATURES), kinds].sum(dim=-1)


def yields(gain_PG: Tensor) -> Tensor:
    """[P]: max_i g⁺_i − mean_i g⁺_i, nats; 0 where no thought of the group helped."""
    helped = gain_PG.clamp_min(0)
    return helped.amax(dim=1) - helped.mean(dim=1)


def _kinds(before: Tensor, second: Tensor, entropy: Tensor, nll: Tensor) -> Tensor:
    """int64 [N, FEATURES]: the bucket of each feature."""
    edges = torch.tensor(EDGES, dtype=entropy.dtype)
    tiers = torch.bucketize(entropy, edges) * (len(EDGES) + 1) + torch.bucketize(nll, edges)
    pair = before * 1_000_003 + second
    return torch.stack([_bucket(before), _bucket(pair), tiers], dim=-1)


def _bucket(key: Tensor) -> Tensor:
    """Multiplicative hashing: the top bits of a product modulo 2^32."""
    return ((key * 2654435761) & 0xFFFFFFFF) >> 20
