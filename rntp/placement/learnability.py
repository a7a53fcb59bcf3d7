"""Positions in proportion to the variance that the rewards of their thoughts had lately.

A group whose thoughts all earn the same teaches nothing; the squared length of a group's policy
gradient goes with the variance of its rewards. Sampling without replacement, and not the
best few, keeps looking elsewhere.

Where thoughts have earned unequal rewards lately: the record behind the policy of that name.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rntp.placement import register, weighted_sample
from rntp.placement.repeats import group_of_rows, rows_of_groups, spread
from rntp.types import Context, NextTokenStats, Page, PlacementInputs

# Least weight of a position, as a share of the context's largest: a bucket that taught nothing is
# visited again some day, because the policy changes.
FLOOR = 0.02


@register("learnability")
def learnability(inputs: PlacementInputs) -> Tensor:
    """A weighted sample, weight = (running standard deviation)² + floor, [L].

    Without any learnability it is uniform.
    """
    variance = inputs.learned_L.double().square()
    weight = variance + FLOOR * variance.max().clamp_min(1e-30)
    return weighted_sample(weight, inputs.noise_L)


BUCKETS = 4096
DECAY = 0.9  # of a bucket's running value, per group
ENTROPY_TIERS = (0.5, 1.5, 3.0)  # nats


class Learnability:
    """Running standard deviation of the rewards of a group, by the kind of position.

    Positions are of one kind if the same token stands before them and the no-think prediction
    there is about as unsure: two facts that are known before anybody thinks, and that recur. A kind
    without a group yet is taken for an average one.
    """

    def __init__(self) -> None:
        self._std = torch.zeros(BUCKETS, dtype=torch.float64)
        self._groups = torch.zeros(BUCKETS, dtype=torch.int64)

    def of(self, context: Context, next_token: NextTokenStats) -> Tensor:
        """Reward units, float32 [L]."""
        seen = self._groups > 0
        unseen = self._std[seen].mean() if seen.any() else self._std.new_ones(())
        # Nothing stands before the first token, which is never a position.
        kinds = _buckets(context.token_ids.roll(1), next_token.entropy_L)
        return torch.where(seen, self._std, unseen)[kinds].float()

    def observe(self, pages: Sequence[Page], reward_PG: Tensor, gain_PG: Tensor) -> None:
        """Take in the groups of a step, in order. reward_PG: of the scheme that drives."""
        before = torch.cat([page.before_K2[:, 0] for page in pages])
        kinds_P = _buckets(before, torch.cat([page.entropy_K for page in pages]))
        group_P = group_of_rows(page.positions for page in pages)
        firsts = torch.cat([rows[:, 0] for rows in rows_of_groups(group_P)]).sort().values
        found = spread(reward_PG.cpu().double(), group_P)
        for kind, std in zip(kinds_P[firsts].tolist(), found.tolist(), strict=True):
            old = float(self._std[kind])
            first = self._groups[kind] == 0
            self._std[kind] = std if first else DECAY * old + (1 - DECAY) * std
            self._groups[kind] += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {"std": self._std, "groups": self._groups}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self._std.copy_(tensors["std"])
        self._groups.copy_(tensors["groups"])


def _buckets(before: Tensor, entropy: Tensor) -> Tensor:
    """int64: the bucket of each position, from the token before it and its entropy, nats."""
    tier = torch.bucketize(entropy, torch.tensor(ENTROPY_TIERS, dtype=entropy.dtype))
    kind = before * (len(ENTROPY_TIERS) + 1) + tier
    # Multiplicative hashing: the top bits of a product modulo 2^32.
    return ((kind * 2654435761) & 0xFFFFFFFF) >> 20
