"""What a made corpus' labels say: to placement policies, and about where a step thought.

A class is a name up to its comma: "thinkable, 2 hops" is of class "thinkable".
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rntp.types import Labels, Rollout


def class_names(labels: Labels) -> list[str]:
    """The class of each token, "" where nothing is known; [L]."""
    return [labels.names.get(c, "").partition(",")[0] for c in labels.classes]


def class_numbers(labels: Labels) -> Tensor:
    """int64 [L]: classes by number, in the order of their names; -1 where nothing is known."""
    names = class_names(labels)
    number = {name: n for n, name in enumerate(sorted({*names} - {""}))}
    return torch.tensor([number.get(name, -1) for name in names])


def oracle_gains(labels: Labels) -> Tensor:
    """float32 [L]: nats that a perfect thought before the token is worth, 0 where none helps."""
    gain_L = torch.zeros(len(labels.classes))
    for index, known in labels.oracle.items():
        gain_L[index] = known.gain
    return gain_L


def count_hits(rollouts: Sequence[Rollout], *, min_prefix: int, horizon: int) -> Tensor:
    """Count over the labelled pages, float64 [4]: positions that were picked, those of them that a
    thought can help with, all such positions with min_prefix <= p <= L − horizon, and all of them.
    """
    picked, hits, helpful, known = 0, 0, 0, 0
    for rollout in rollouts:
        labels = rollout.context.labels
        if labels is None:
            continue
        helps_L = oracle_gains(labels) > 0
        known += len(labels.oracle)
        picked += len(rollout.positions)
        hits += int(helps_L[list(rollout.positions)].sum())
        helpful += int(helps_L[min_prefix : len(rollout.context) - horizon + 1].sum())
    return torch.tensor([picked, hits, helpful, known], dtype=torch.float64)


def hit_rates(counts: Tensor) -> dict[str, float]:
    """Give precision and recall, from counts of `count_hits`, which add up.

    precision: share of the picked that a thought can help with. recall: share of such positions
    that were picked. Each is left out where it would be 0 / 0, and both where no label knows of
    such a position.
    """
    picked, hits, helpful, known = counts.tolist()
    found = {"placement/precision": hits / picked} if picked and known else {}
    return found | ({"placement/recall": hits / helpful} if helpful else {})


def class_sums(rollouts: Sequence[Rollout], gain_PGH: Tensor) -> dict[str, tuple[float, int]]:
    """Sum the gains of each class, nats, beside the number of its continuation tokens.

    gain_PGH: log-prob with the thought less without, of the positions of the rollouts in order.
    """
    gains: dict[str, list[float]] = {}
    rows = iter(gain_PGH.mean(dim=1).tolist())
    for rollout in rollouts:
        labels = rollout.context.labels
        names = class_names(labels) if labels else []
        for position in rollout.positions:
            for name, gain in zip(names[position:], next(rows), strict=False):
                gains.setdefault(name, []).append(gain)
    return {name: (sum(values), len(values)) for name, values in gains.items() if name}


def class_means(parts: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """Take the mean gain of each class, from what `class_sums` found in the parts of a step."""
    sums: dict[str, tuple[float, int]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = sums.get(name, (0.0, 0))
            sums[name] = before[0] + total, before[1] + count
    return {
        f"class/{name.replace(' ', '_')}/gain": total / count
        for name, (total, count) in sorted(sums.items())
    }
