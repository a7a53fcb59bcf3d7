"""How much of a lost context memories bring back, where continuations are read behind a window.

Four cells of the same continuations, in nats per token: the window alone, with the memory, with the
whole context in place of both (the bound), and behind a window that is longer by the room which a
memory may take (the bar: what the same room gives without thinking).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rntp.evaluation.pages import Page, positions_of
from rntp.evaluation.resampling import interval, interval_of_some

DISTANCES = 4  # groups of positions by how much they have lost
ENTROPIES = 10


def longer_by(memory_tokens: int) -> int:
    """Count the tokens by which the bar's window is longer: those of the longest memory, with its
    markers."""
    return memory_tokens + 2


def memory_table(
    pages: Sequence[Page], entropy_P: np.ndarray, *, window: int, longer: int, seed: int
) -> dict[str, Any]:
    """Tabulate the cells of all continuation tokens, by how much was lost and by entropy.

    entropy_P: nats, of the prediction at each position in sight of the whole context. recovered:
    gain of the memory over gain of the whole context, Σ over Σ, None where the latter is not above
    0, or where windows are as long as their pages and nothing is lost. Intervals are of 95 %, over
    documents.
    """
    positions, documents_P = positions_of(pages)
    cells = _Cells(positions)
    lost_P = np.array([max(at["position"] - window, 0) for at in positions])
    of_all = _cells(cells, documents_P, seed)
    by_lost = _groups(cells, lost_P, documents_P, DISTANCES, seed)
    by_entropy = _groups(cells, entropy_P, documents_P, ENTROPIES, seed)
    if not lost_P.any():
        by_lost = []
        of_all |= {"recovered": None, "recovered_ci95": None}
        by_entropy = [{**row, "recovered": None} for row in by_entropy]
    return {
        "window": window,
        "longer_by": longer,
        **of_all,
        "by_lost_tokens": by_lost,
        "by_entropy": by_entropy,
        "controls": _controls(positions, documents_P, seed),
        "by_class": _classes(positions, documents_P, seed),
    }


def _controls(
    positions: Sequence[Mapping[str, Any]], documents_P: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """Gain of each control in the memory's place, where it was measured: nats a token."""
    found = {}
    for name in dict.fromkeys(name for at in positions for name in at.get("controls", {})):
        members = [i for i, at in enumerate(positions) if name in at.get("controls", {})]
        gain = np.array(
            [
                np.mean(positions[i]["controls"][name]) - np.mean(positions[i]["logp_empty"])
                for i in members
            ]
        )
        found[name] = {
            "num_positions": len(members),
            "gain": float(gain.mean()),
            "gain_ci95": interval_of_some(gain, documents_P[members], seed),
        }
    return found


def _classes(
    positions: Sequence[Mapping[str, Any]], documents_P: np.ndarray, seed: int
) -> dict[str, dict[str, Any]]:
    """By class of the token at the position: nats of the whole continuation, of the memory and of
    what stands in its place. of_oracle: gain over that of the best memory, as the reader reads it.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({at.get("class", "") for at in positions} - {""}):
        members = [i for i, at in enumerate(positions) if at.get("class") == name]
        some = [positions[i] for i in members]
        bare = np.array([np.sum(at["logp_empty"]) for at in some])
        memory = np.array(
            [np.mean([np.sum(t["logp_think"]) for t in at["thoughts"]]) for at in some]
        )
        whole = np.array([np.sum(at["logp_whole"]) for at in some])
        known = [at["oracle_gain"] for at in some if at.get("oracle_gain") is not None]
        gain = memory - bare
        row: dict[str, Any] = {
            "num_positions": len(some),
            "nll/window": float(-bare.mean()),
            "gain": float(gain.mean()),
            "gain_ci95": interval_of_some(gain, documents_P[members], seed),
            "whole": float((whole - bare).mean()),
            "oracle_gain": float(np.mean(known)) if len(known) == len(some) else None,
            "of_oracle": None,
            "controls": {},
        }
        for control in some[0].get("controls", {}):
            if all(control in at["controls"] for at in some):
                values = np.array([np.sum(at["controls"][control]) for at in some]) - bare
                row["controls"][control] = float(values.mean())
        if row["controls"].get("oracle", 0) > 0:
            row["of_oracle"] = row["gain"] / row["controls"]["oracle"]
        found[name] = row
    return found


class _Cells:
    """Mean log-probs of the continuation's tokens by position, nats, [P] each."""

    def __init__(self, positions: Sequence[Mapping[str, Any]]) -> None:
        self.bare = np.array([np.mean(at["logp_empty"]) for at in positions])
        self.memory = np.array(
            [np.mean([t["logp_think"] for t in at["thoughts"]]) for at in positions]
        )
        self.whole = np.array([np.mean(at["logp_whole"]) for at in positions])
        self.longer = np.array([np.mean(at["logp_longer"]) for at in positions])


def _cells(cells: _Cells, documents_P: np.ndarray, seed: int) -> dict[str, Any]:
    """The gains over the window alone, each with its interval."""
    gain, whole = cells.memory - cells.bare, cells.whole - cells.bare
    found: dict[str, Any] = {"num_positions": len(gain), "nll/window": float(-cells.bare.mean())}
    for name, values in (
        ("gain", gain),
        ("whole", whole),
        ("longer", cells.longer - cells.bare),
        ("over_longer", cells.memory - cells.longer),
    ):
        found[name] = float(values.mean())
        found[f"{name}_ci95"] = interval(values, documents_P, seed)
    found |= {"recovered": None, "recovered_ci95": None}
    if whole.sum() > 0:
        found["recovered"] = float(gain.sum() / whole.sum())
        found["recovered_ci95"] = interval(gain, documents_P, seed, sizes=whole)
    return found


def _groups(
    cells: _Cells, by_P: np.ndarray, documents_P: np.ndarray, count: int, seed: int
) -> list[dict[str, Any]]:
    """Groups of equal size from low to high, with gain, bound and share of each."""
    rows = []
    for members in np.array_split(np.argsort(by_P, kind="stable"), min(count, len(by_P))):
        gain = (cells.memory - cells.bare)[members]
        whole = (cells.whole - cells.bare)[members]
        rows.append(
            {
                "low": float(by_P[members].min()),
                "high": float(by_P[members].max()),
                "num_positions": len(members),
                "gain": float(gain.mean()),
                "gain_ci95": interval_of_some(gain, documents_P[members], seed),
                "whole": float(whole.mean()),
                "whole_ci95": interval_of_some(whole, documents_P[members], seed),
                "recovered": float(gain.sum() / whole.sum()) if whole.sum() > 0 else None,
            }
        )
    return rows
