"""What a growth did, as tables for people."""

from collections.abc import Sequence
from typing import Any

from rntp.grow.frontier import WORTH

_NONE = "–"


def growth_table(facts: dict[str, Any]) -> str:
    """The regions of a growth, most pages first, and the corpora with their new shares."""
    regions = sorted(facts["regions"].items(), key=lambda item: -item[1]["requests"])
    head = ["region", "requests", "documents", "gain", "spread", "elsewhere"]
    rows = [
        [
            name,
            str(r["requests"]),
            str(r["documents"]),
            _nats(r["gain"], "+"),
            _nats(r["spread"]),
            _nats(r["elsewhere"], "+"),
        ]
        for name, r in regions
    ]
    segment = facts["segment"]
    corpora = [
        [
            row["corpus"],
            str(row["tokens"]),
            _nats(row["gain"], "+"),
            _nats(row["spread"]),
            _nats(row["change"], "+"),
            _nats(row["elsewhere"], "+"),
            f"{row['share']:.1%}",
        ]
        for row in facts["corpora"]
    ]
    return "\n".join(
        [
            f"growth {facts['growth']}: {facts['requests']} requests, "
            f"{facts['bytes'] / 1e6:.1f} MB, {facts['random']} pages at random; "
            f"{segment['documents']} documents, {segment['tokens']} tokens in segment "
            f"{segment['folder']}",
            "",
            _columns([head, *rows]),
            "",
            _columns([["corpus", "tokens", *WORTH, "share"], *corpora]),
            "gain, spread, change, elsewhere: nats a token",
        ]
    )


def _nats(value: float | None, sign: str = "") -> str:
    return _NONE if value is None else f"{value:{sign}.3f}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows under each other: the first column to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
