"""Gain by token class, and under controls: tables over the pages of an evaluation.

All numbers are of the token right after the thought, in nats. Classes exist in made corpora only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rntp.evaluation.resampling import interval

Page = dict[str, Any]


def controls_table(pages: Sequence[Page], seed: int) -> dict[str, dict[str, Any]]:
    """Gain under each control, over all positions that have it, with its 95 % interval."""
    rows = _rows(pages)
    names = dict.fromkeys(name for row in rows for name in row["controls"])
    return {name: _control(rows, name, seed) for name in names}


def class_table(pages: Sequence[Page], seed: int) -> dict[str, dict[str, Any]]:
    """One row a class, and one for each of its kinds ("thinkable" and "thinkable, 2 hops").

    oracle_gain: mean nats that a perfect thought is worth, None in classes without any.
    oracle_fraction: gain / oracle_gain. solved: (oracle_gain − excess) / oracle_gain, with excess
    the loss with thinking: what is known after the thought, which a bad no-think loss cannot raise.
    """
    rows = [row for row in _rows(pages) if row["class"]]
    kinds = sorted({row["class"] for row in rows})
    names: list[str] = []
    for kind in kinds:
        group = kind.partition(",")[0]
        names += [n for n in (group, kind) if n not in names]
    return {
        name: _class([r for r in rows if name in (r["class"], r["class"].partition(",")[0])], seed)
        for name in names
    }


def _rows(pages: Sequence[Page]) -> list[dict[str, Any]]:
    return [
        {
            "document": number,
            "class": at.get("class", ""),
            "no_think": -at["logp_empty"][0],
            "think": -float(np.mean([t["logp_think"][0] for t in at["thoughts"]])),
            "oracle_gain": at.get("oracle_gain"),
            "controls": {name: -logp[0] for name, logp in at.get("controls", {}).items()},
        }
        for number, page in enumerate(pages)
        for at in page["positions"]
    ]


def _control(rows: list[dict[str, Any]], name: str, seed: int) -> dict[str, Any]:
    members = [row for row in rows if name in row["controls"]]
    gain = np.array([row["no_think"] - row["controls"][name] for row in members])
    return {"num_tokens": len(members), **_gain(gain, members, seed)}


def _class(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    no_think = np.array([row["no_think"] for row in rows])
    think = np.array([row["think"] for row in rows])
    known = [row["oracle_gain"] for row in rows if row["oracle_gain"] is not None]
    found: dict[str, Any] = {
        "num_tokens": len(rows),
        "nll/no_think": float(no_think.mean()),
        "nll/think": float(think.mean()),
        **_gain(no_think - think, rows, seed),
        "oracle_gain": None,
        "oracle_fraction": None,
        "solved": None,
    }
    if len(known) == len(rows):
        most = float(np.mean(known))
        found |= {
            "oracle_gain": most,
            "oracle_fraction": found["gain"] / most,
            "solved": 1 - found["nll/think"] / most,
        }
    names = dict.fromkeys(name for row in rows for name in row["controls"])
    return {**found, "controls": {name: _control(rows, name, seed) for name in names}}


def _gain(gain: np.ndarray, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    _, documents = np.unique([row["document"] for row in rows], return_inverse=True)
    return {"gain": float(gain.mean()), "gain_ci95": interval(gain, documents, seed)}
