"""Two evaluations of the same continuations, side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rntp.evaluation.next_token import accuracies
from rntp.evaluation.pages import Page, arrays, positions_of
from rntp.evaluation.pass_rates import beside
from rntp.evaluation.resampling import interval
from rntp.evaluation.value import bits


def compare(before: dict[str, Any], after: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """The four cells, with the change of each and its 95 % interval, paired over documents.

    Beside them bits per byte and accuracy of the next token, unless one of the two was written
    before they were measured. Raises ValueError if the two are not of the same continuations.
    """
    no_think_0, think_0, documents = arrays(before["pages"])
    no_think_1, think_1, others = arrays(after["pages"])
    if documents.shape != others.shape or (documents != others).any():
        raise ValueError("the two evaluations are of different continuations")
    cells = {
        "nll/no_think": (no_think_0, no_think_1),
        "nll/think": (think_0, think_1),
        "gain/mean": (no_think_0 - think_0, no_think_1 - think_1),
    }
    table: dict[str, Any] = {
        name: {
            "before": float(old.mean()),
            "after": float(new.mean()),
            "change": float((new - old).mean()),
            "ci95": interval(new - old, documents, seed),
        }
        for name, (old, new) in cells.items()
    }
    table["gain_ci95"] = {
        "before": interval(no_think_0 - think_0, documents, seed),
        "after": interval(no_think_1 - think_1, documents, seed),
    }
    table |= _of_positions(before["pages"], after["pages"], seed)
    table |= beside(before["pages"], after["pages"], seed)
    if "memory" in before and "memory" in after:
        table["memory"] = _beside_memory(before["memory"], after["memory"])
    table["num_docs"] = int(documents.max()) + 1
    table["num_tokens"] = len(documents)
    return table


def _beside_memory(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What else could stand in a memory's place, and what it would gain over the window alone:
    nats a token, with the interval after training."""

    def row(of: str, within: str | None = None) -> dict[str, Any]:
        old, new = ((m["controls"][within] if within else m) for m in (before, after))
        return {"before": old[of], "after": new[of], "ci95_after": new[f"{of}_ci95"]}

    rows = {"longer": row("longer"), "over_longer": row("over_longer"), "whole": row("whole")}
    both = [name for name in after["controls"] if name in before["controls"]]
    controls = {name: row("gain", name) for name in both}
    return {"longer_by": after["longer_by"], "rows": rows, "controls": controls}


def _of_positions(before: Sequence[Page], after: Sequence[Page], seed: int) -> dict[str, Any]:
    """The change of what is measured once a position; {} where one side lacks it."""
    old, documents_P = positions_of(before)
    new, _ = positions_of(after)
    if not all("num_bytes" in at and "first_empty" in at for at in (*old, *new)):
        return {}
    bytes_P = np.array([at["num_bytes"] for at in old], dtype=float)
    ones_P = np.ones(len(old))
    table = {}
    for name, measure, sizes_P in (
        ("bits_per_byte", bits, bytes_P),
        ("accuracy", accuracies, ones_P),
    ):
        for side, old_P, new_P in zip(
            ("no_think", "think"), measure(old), measure(new), strict=True
        ):
            total = sizes_P.sum()
            table[f"{name}/{side}"] = {
                "before": float(old_P.sum() / total),
                "after": float(new_P.sum() / total),
                "change": float((new_P - old_P).sum() / total),
                "ci95": interval(new_P - old_P, documents_P, seed, sizes=sizes_P),
            }
    return table
