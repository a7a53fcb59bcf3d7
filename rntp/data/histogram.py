"""How long the documents of a corpus are, as text and as a picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rntp.errors import ConfigError

_WIDTH = 40

Bin = tuple[int, int, int]
"""Shortest and longest length, tokens, and how many documents have one of these."""


def bins(num_tokens: np.ndarray) -> list[Bin]:
    """Documents by length, one bin a power of two, from the shortest to the longest."""
    powers = np.floor(np.log2(np.maximum(num_tokens, 1))).astype(int)
    counts = np.bincount(powers)
    return [
        (1 << power, (2 << power) - 1, int(counts[power]))
        for power in range(int(powers.min()), int(powers.max()) + 1)
    ]


def as_text(found: Sequence[Bin]) -> str:
    """One line a bin, with a bar in proportion."""
    most = max(count for _, _, count in found)
    return "\n".join(
        f"{low:>9,} – {high:>9,} tokens  {count:>9,}  {'█' * round(_WIDTH * count / most)}"
        for low, high, count in found
    )


def plot(found: Sequence[Bin], path: Path) -> None:
    """The same as a picture; the ending says the form (.png, .svg). Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib; `pip install 'rntp[ablate]'`") from error
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"{path}: the ending says the form; name it .png or .svg")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar([f"{low:,}" for low, _, _ in found], [count for _, _, count in found])
    axes.set_xlabel("tokens of a document, at least")
    axes.set_ylabel("documents")
    axes.tick_params(axis="x", rotation=45)
    figure.savefig(path)
