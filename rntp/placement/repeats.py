"""More thoughts where they differ: a position may have several rows of thoughts.

All that is drawn, read and rewarded goes by rows of G thoughts. Rows of one position are one group:
they are drawn apart, and compared with each other. Pure functions.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def repeated(places: Sequence[int], std_K: Tensor, more: int) -> tuple[int, ...]:
    """The places with `more` rows besides their first ones, ascending.

    std_K: of the rewards that thoughts had lately at each place, at least 0. Every next row goes
    where it lowers the variance of a group's mean the most, σ² / n − σ² / (n + 1): in the end
    thoughts are in proportion to σ (Neyman 1934). Where nothing differs they are spread evenly.
    """
    variance_K = std_K.double().square()
    variance_K = variance_K.clamp_min(1e-6 * max(float(variance_K.max()), 1e-12))
    rows_K = torch.ones(len(places), dtype=torch.float64)
    for _ in range(more):
        rows_K[(variance_K / (rows_K * (rows_K + 1))).argmax()] += 1
    rows = zip(places, rows_K.long().tolist(), strict=True)
    return tuple(sorted(place for place, count in rows for _ in range(count)))


def rows_before(positions: Sequence[int]) -> list[int]:
    """For each row of a context, how many rows of the same position stand before it; ascending."""
    found: list[int] = []
    for row, position in enumerate(positions):
        again = row > 0 and positions[row - 1] == position
        found.append(found[-1] + 1 if again else 0)
    return found


def members(contexts: Iterable[Sequence[int]], thoughts: int) -> Tensor:
    """The number of each thought in its group, int64 [P, thoughts]: what its chance goes by."""
    before = [row for positions in contexts for row in rows_before(positions)]
    return torch.tensor(before, dtype=torch.int64)[:, None] * thoughts + torch.arange(thoughts)


def group_of_rows(contexts: Iterable[Sequence[int]]) -> Tensor:
    """The number of each row's group, int64 [P], ascending. contexts: the positions of each."""
    firsts = [before == 0 for positions in contexts for before in rows_before(positions)]
    return torch.tensor(firsts, dtype=torch.int64).cumsum(0) - 1


def rows_of_groups(group_P: Tensor) -> list[Tensor]:
    """The rows of groups that have as many: for each number of rows, int64 [groups, rows]."""
    group_P = group_P.cpu()
    count_Q = torch.bincount(group_P)
    order = group_P.argsort(stable=True)
    start_Q = count_Q.cumsum(0) - count_Q
    return [
        order[start_Q[count_Q == count][:, None] + torch.arange(count)]
        for count in count_Q.unique().tolist()
    ]


def spread(reward_PG: Tensor, group_P: Tensor) -> Tensor:
    """Standard deviation of the rewards of each group, [Q], in the order of its first row."""
    parts = rows_of_groups(group_P)
    found = [reward_PG[rows].flatten(1).std(dim=1, correction=0) for rows in parts]
    first = torch.cat([rows[:, 0] for rows in parts])
    return torch.cat(found)[first.argsort().to(reward_PG.device)]
