"""What searches on real text gain."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIXED = Path(__file__).parents[2] / "experiments/tools/results/fixed.json"
ASKED = {
    "last_words": "the last 12 words before the position",
    "rare_words": "5 rare words nearby",
    "others_words": "another document's last words (control)",
}


def search_fixed() -> str:
    """Write what is gained by passages that fixed queries find, before anything is sampled."""
    found = json.loads(FIXED.read_text(encoding="utf-8"))
    lines = ["| searched for | gain, nats a token [95 % interval] |", "| --- | --- |"]
    lines += [f"| {told} | {_gain(found, name)} |" for name, told in ASKED.items()]
    lines += [
        "",
        f"{found['num_positions']} random positions in {found['num_docs']} held-out documents; "
        f"loss without a thought {found['nll/no_think']:.3f}.",
    ]
    return "\n".join(lines)


def fixed_gain() -> str:
    """Say what the best rule gains, and its control."""
    found = json.loads(FIXED.read_text(encoding="utf-8"))
    return (
        f"{_gain(found, 'last_words')} nats a token for what the last 12 words find; control: for "
        f"another document's words {_gain(found, 'others_words')}. Queries that RL has learnt: not "
        "measured yet"
    )


def _gain(found: dict[str, Any], name: str) -> str:
    control = found["memory"]["controls"][name]
    low, high = control["gain_ci95"]
    return f"{control['gain']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")


MAKERS: dict[str, Callable[[], str]] = {"search_fixed": search_fixed}
