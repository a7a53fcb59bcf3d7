"""From a budget of thought tokens to the price at which a gate meets it on a text."""

import torch
from torch import Tensor

from rntp.gate.gate import best_length


def tokens_at(tokens_L: Tensor, least: int) -> float:
    """Sum the tokens of a text's thoughts: one wherever there is any, `least` tokens apart.

    tokens_L: of the thought at each place, 0 for none.
    """
    total, last = 0.0, -least
    for position in tokens_L.nonzero()[:, 0].tolist():
        if position - last >= least:
            total, last = total + float(tokens_L[position]), position
    return total


def price_for(worth_LB: Tensor, tokens_B: Tensor, budget: float, least: int) -> float:
    """Find the lowest price, nats a thought token, at which a text's thoughts stay within a budget.

    worth_LB: nats that a gate expects a thought of each length to gain at each place, float64; −∞
    where nobody may think. tokens_B: of a thought of each length, ascending. budget: tokens of
    thoughts. 0 where the budget holds every thought that is expected to help at all: a lower price
    would buy harm.
    """
    known = _changes(worth_LB, tokens_B)
    taken_B = torch.cat([torch.zeros(1, dtype=torch.float64), tokens_B])
    low, high = 0, len(known) - 1  # among these, the first that is dear enough; the last always is
    while low < high:
        middle = (low + high) // 2
        choice_L = best_length(worth_LB, tokens_B, float(known[middle]))
        if tokens_at(taken_B[choice_L], least) <= budget * (1 + 1e-12):
            high = middle
        else:
            low = middle + 1
    return float(known[low])


def _changes(worth_LB: Tensor, tokens_B: Tensor) -> Tensor:
    """The prices at which the best length of some place changes, from 0 up, each a little above:
    where a length stops paying, and where a shorter one pays as well."""
    count = len(tokens_B)
    ratios = [worth_LB / tokens_B]
    for shorter in range(count):
        for longer in range(shorter + 1, count):
            more = worth_LB[:, longer] - worth_LB[:, shorter]
            ratios.append((more / (tokens_B[longer] - tokens_B[shorter]))[:, None])
    every = torch.cat([ratio.flatten() for ratio in ratios])
    above = every[torch.isfinite(every) & (every > 0)].unique() * (1 + 1e-9)
    return torch.cat([torch.zeros(1, dtype=torch.float64), above])
