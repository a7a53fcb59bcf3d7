"""The table of all seeds at the same positions: by hand, and never of unlike ones."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments/tools"))

import wide


def result(gains: list[list[float]], nll: float = 2.0) -> dict:
    """Positions of two tokens; gains of each page's positions, nats a token."""
    pages = [
        {
            "document_id": f"d{number}",
            "positions": [
                {
                    "position": 50 + k,
                    "logp_empty": [-nll, -nll],
                    "thoughts": [{"logp_think": [gain - nll, gain - nll]}],
                }
                for k, gain in enumerate(page)
            ],
        }
        for number, page in enumerate(gains)
    ]
    return {"pages": pages, "step": 3, "data_digest": "d"}


def test_gains_and_changes_by_hand() -> None:
    before, after = [[0.1, -0.1], [0.2, 0.0]], [[0.3, 0.1], [0.2, 0.0]]
    rows = wide.compared({"before": result(before), "seed 0": result(after, nll=2.25)})
    assert rows["before"]["gain"][0] == pytest.approx(0.05)
    mean, low, high = rows["seed 0"]["gain"]
    assert mean == pytest.approx(0.15)
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.2))  # of two documents
    assert rows["seed 0"]["change"] == pytest.approx([0.1, 0.0, 0.2])
    assert rows["seed 0"]["nll_change"] == pytest.approx([0.25, 0.25, 0.25])
    assert (rows["seed 0"]["helped"], rows["before"]["helped"]) == (0.75, 0.5)
    assert (rows["before"]["positions"], rows["before"]["documents"]) == (4, 2)
    assert rows["seed 0"]["of"] == {"step": 3, "data_digest": "d"}
    text = wide.table(rows)
    assert "4 positions of 2 documents" in text
    assert "| … less that before | – | +0.1000 [+0.0000, +0.2000] |" in text


def test_other_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="other positions"):
        wide.compared({"before": result([[0.1], [0.2]]), "seed 0": result([[0.1, 0.1], [0.2]])})
