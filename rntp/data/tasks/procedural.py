"""Tasks that are made when they are asked for: reasoning-gym's generators (2505.24760).

Task number n of a generator is a function of its settings and of n, so that nothing is kept, and a
resume makes the same again. What it is also depends on the version of the package, which therefore
is part of the data's digest.
"""

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from rntp.data.tasks.rows import Row
from rntp.errors import ConfigError

NUMBERS = 1 << 31
"""Tasks of a generator, by number; some seed NumPy with one, which takes 32 bits."""


class Generator:
    """`generator[number]` is a task. facts: what makes a number mean what it does."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        """Raises ConfigError where there is no such generator, or where it refuses a setting."""
        self.name, self._settings = name, dict(settings)
        _ = self._made  # refuse now what cannot be made
        package = version("reasoning-gym")
        self.facts: dict[str, Any] = {"gym": name, "settings": self._settings, "version": package}

    @property
    def _made(self) -> Any:
        return _open(self.name, json.dumps(self._settings, sort_keys=True))

    def __getitem__(self, number: int) -> Row:
        entry = self._made[number]
        made = {"gym": self.name, "settings": self._settings, "entry": entry}
        answer = "" if entry["answer"] is None else str(entry["answer"])
        return Row(str(entry["question"]).strip(), answer.strip(), f"{self.name}#{number}", made)


def made_score(made: Mapping[str, Any], answer: str) -> float:
    """Score an answer by the generator's own scorer, in [0, 1]; `made` is of a `Row`."""
    dataset = _open(made["gym"], json.dumps(made["settings"], sort_keys=True))
    return float(dataset.score_answer(answer=answer, entry=made["entry"]))


@lru_cache(maxsize=64)
def _open(name: str, settings: str) -> Any:
    """A data set of reasoning-gym. settings: JSON."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            f"task:gym:{name} needs the package reasoning-gym; install the extra `tasks` (pip "
            "install 'rntp[tasks]')"
        ) from error
    known = reasoning_gym.factory.DATASETS
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"task:gym:{name}: reasoning-gym has no such generator"
            + (f"; did you mean {near[0]}?" if near else f" (it has {', '.join(sorted(known))})")
        )
    try:
        return reasoning_gym.create_dataset(name, **json.loads(settings), seed=0, size=NUMBERS)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"data.tasks.gym.{name}: {error}; the settings are those of its config class in "
            "reasoning-gym, less seed and size"
        ) from error
