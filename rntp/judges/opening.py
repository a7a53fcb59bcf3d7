"""Judges as a config names them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from rntp.config import Config
from rntp.judges.endpoint import Endpoint
from rntp.judges.panel import Panel
from rntp.runtime.key_store import KeyStore
from rntp.types import Verdict


def open_panel(config: Config, folder: Path | None = None, rank: int = 0) -> Panel:
    """Open the judges of `reward.judges`. folder: where verdicts are kept; None: in memory.

    Raises ConfigError where a key or a package is missing.
    """
    settings = config.reward.judges
    judges = {
        name: Endpoint(
            judge.url,
            judge.model,
            judge.key,
            settings.verdict,
            seconds=settings.seconds,
            tries=settings.tries,
        )
        for name, judge in settings.use.items()
    }
    return Panel(
        dict(judges),
        KeyStore(folder, rank),
        sees=settings.sees,
        rule=settings.rule,
        at_once=settings.at_once,
        calls=settings.calls,
        tokens=settings.tokens,
    )


def combined(config: Config) -> Callable[[Mapping[str, Verdict]], float | None]:
    """Make the function that puts the verdicts of several judges together; None: one is missing."""
    minimum = config.reward.judges.combine == "minimum"

    def of(verdicts: Mapping[str, Verdict]) -> float | None:
        values = [v.yes for v in verdicts.values() if v.yes is not None]
        if len(values) < len(verdicts) or not values:
            return None
        return min(values) if minimum else math.fsum(values) / len(values)

    return of
