"""The planted web for tests, and a stand-in for the model that knows its regions."""

import sys
from collections.abc import Mapping
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
sys.path[:0] = [str(EXPERIMENTS / "grow"), str(EXPERIMENTS / "planted")]

from rntp.rng import fraction  # noqa: E402


def kind(text: str) -> str:
    """What a page of the web is, by its text."""
    if " after" in text or "Value of" in text:
        return "learnable"
    if text.count("Reference") > 5:
        return "noise"
    return "easy"


# Mean gain and mean spread, nats a token; noise spreads rewards most, as it does for real models.
_MEANS = {"learnable": (0.12, 0.10), "noise": (-0.5, 1.1), "easy": (-0.1, 0.12)}


def known_worth(texts: Mapping[int, str]) -> dict[int, dict[str, float] | None]:
    """Worths of pages by what they are, with noise that is a function of the text."""
    found: dict[int, dict[str, float] | None] = {}
    for number, text in texts.items():
        gain, spread = _MEANS[kind(text)]
        gain += 0.4 * (fraction(text, "gain") - 0.5)
        spread *= 0.5 + fraction(text, "spread")
        found[number] = {"gain": gain, "spread": spread, "change": 0.0, "elsewhere": -0.1}
    return found
