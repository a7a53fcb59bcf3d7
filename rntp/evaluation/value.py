"""What thoughts are worth besides their mean: the K-thought bound, bits per byte, net of cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rntp.evaluation.resampling import interval

Positions = Sequence[dict[str, Any]]

PRICE = 0.01  # of a thought token, bits; training does not know it


def bounds_by_thoughts(
    positions: Positions, documents_P: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """−log (1/K) Σ_k p(continuation | thought k), for K = 1, 2, 4 … up to the thoughts there are.

    Nats per token. K = 1 is the mean over single thoughts, an upper bound of the model's loss with
    a random thought; a larger K is a tighter one. Groups of K do not share a thought, and the
    bound is the mean over them. below_single: how far below K = 1.
    """
    think_PG = np.array([[sum(t["logp_think"]) for t in at["thoughts"]] for at in positions])
    empty_P = np.array([sum(at["logp_empty"]) for at in positions])
    horizon = np.array([len(at["logp_empty"]) for at in positions])
    single_P = -think_PG.mean(axis=1) / horizon
    rows = []
    thoughts = 1
    while thoughts <= think_PG.shape[1]:
        groups = think_PG.shape[1] // thoughts
        each = think_PG[:, : groups * thoughts].reshape(len(think_PG), groups, thoughts)
        log_mean = np.logaddexp.reduce(each, axis=2) - math.log(thoughts)
        bound_P = -log_mean.mean(axis=1) / horizon
        gain_P = -empty_P / horizon - bound_P
        rows.append(
            {
                "thoughts": thoughts,
                "nll/think": float(bound_P.mean()),
                "gain": float(gain_P.mean()),
                "gain_ci95": interval(gain_P, documents_P, seed),
                "below_single": float((single_P - bound_P).mean()),
                "below_single_ci95": interval(single_P - bound_P, documents_P, seed),
            }
        )
        thoughts *= 2
    return rows


def bits_per_byte(positions: Positions, documents_P: np.ndarray, seed: int) -> dict[str, Any]:
    """Loss in bits by bytes of the continuations' text: comparable between tokenizers."""
    bytes_P = np.array([at["num_bytes"] for at in positions], dtype=float)
    no_think_P, think_P = bits(positions)
    saved_P = no_think_P - think_P
    total = float(bytes_P.sum())
    return {
        "num_bytes": int(total),
        "no_think": float(no_think_P.sum() / total),
        "think": float(think_P.sum() / total),
        "saved": float(saved_P.sum() / total),
        "saved_ci95": interval(saved_P, documents_P, seed, sizes=bytes_P),
    }


def net_gain(
    positions: Positions, documents_P: np.ndarray, seed: int, *, price: float = PRICE
) -> dict[str, Any]:
    """Bits saved by a thought less price × its tokens (λ · len(c)), a position.

    price: bits a thought token; the choice of it decides the sign. break_even: the price at which
    the mean is 0; None where thoughts save nothing at all, or are empty. Tokens are those between
    the markers.
    """
    no_think_P, think_P = bits(positions)
    saved_P = no_think_P - think_P
    tokens_P = np.array([np.mean([t["num_tokens"] for t in at["thoughts"]]) for at in positions])
    net_P = saved_P - price * tokens_P
    return {
        "bits_per_thought_token": price,
        "bits_saved": float(saved_P.mean()),
        "thought_tokens": float(tokens_P.mean()),
        "net": float(net_P.mean()),
        "net_ci95": interval(net_P, documents_P, seed),
        "break_even": (
            float(saved_P.mean() / tokens_P.mean())
            if saved_P.mean() > 0 and tokens_P.any()
            else None
        ),
    }


def bits(positions: Positions) -> tuple[np.ndarray, np.ndarray]:
    """Bits of each continuation without a thought and with one (mean over thoughts), [P] each."""
    no_think = [-sum(at["logp_empty"]) for at in positions]
    think = [-np.mean([sum(t["logp_think"]) for t in at["thoughts"]]) for at in positions]
    return np.array(no_think) / math.log(2), np.array(think) / math.log(2)
