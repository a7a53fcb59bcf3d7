"""Gain by how hard the token is."""

from typing import Any

import numpy as np

from rntp.evaluation.resampling import interval_of_some


def deciles(
    bins: np.ndarray, no_think: np.ndarray, think: np.ndarray, documents: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Ten groups of tokens of equal size, from the easiest to the hardest by `bins` (nats)."""
    rows = []
    for number, members in enumerate(np.array_split(np.argsort(bins, kind="stable"), 10), 1):
        if not len(members):
            continue
        gain = no_think[members] - think[members]
        rows.append(
            {
                "decile": number,
                "num_tokens": len(members),
                "nll_low": float(bins[members].min()),
                "nll_high": float(bins[members].max()),
                "nll/no_think": float(no_think[members].mean()),
                "nll/think": float(think[members].mean()),
                "gain": float(gain.mean()),
                "gain_ci95": interval_of_some(gain, documents[members], seed),
            }
        )
    return rows
