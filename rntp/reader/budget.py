"""From a budget of thought tokens to the price at which a gate meets it on a text."""

import torch
from torch import Tensor

from rntp.gate import Gate


def thoughts_at(pays_L: Tensor, least: int) -> int:
    """Count the thoughts of a text: one wherever it pays, `least` tokens apart. pays_L: bool."""
    count, last = 0, -least
    for position in pays_L.nonzero()[:, 0].tolist():
        if position - last >= least:
            count, last = count + 1, position
    return count


def price_for(gain_L: Tensor, gate: Gate, budget: float, least: int) -> float:
    """Find the lowest price, nats a thought token, at which a text's thoughts stay within a budget.

    gain_L: that the gate expects at each place, nats a token, float64; −∞ where nobody may think.
    budget: tokens of thoughts, counted by the mean length that the gate knows. 0 where the budget
    holds every thought that is expected to help at all: a lower price would buy harm.
    """
    most = int(budget / gate.thought_tokens)
    prices = gain_L * gate.horizon / gate.thought_tokens
    known = prices[prices > 0].sort().values
    low, high = 0, len(known)  # among these, the first that is dear enough; the last always is
    bounds = torch.cat([torch.zeros(1, dtype=known.dtype), known])
    while low < high:
        middle = (low + high) // 2
        if thoughts_at(prices > bounds[middle], least) <= most:
            high = middle
        else:
            low = middle + 1
    return float(bounds[low])
