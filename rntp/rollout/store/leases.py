"""Leases: who samples which part of a step, so that two do not sample the same.

An attempt at a part is a file that only one can make. Whoever holds it gives signs of life, a
number that grows. Nobody compares clocks: a reader measures, by its own clock and from when it
first saw them, how long that number has stood still, so that clocks of two sites may differ by any
amount. Where it has stood still for too long, or the attempt takes four times that, another begins
the next attempt. A lease saves work and decides nothing: the first whole result counts.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rntp.rollout.store.files import Files
from rntp.rollout.store.layout import Unit, get_facts, put_facts, put_new_facts, sampler_name
from rntp.rollout.store.sealed import Refused

SLOW = 4  # leases long: then an attempt counts as lost although its sampler lives
BEATS = 5  # signs of life in the time of a lease

Clock = Callable[[], float]


@dataclass
class Watched:
    """What a reader knows of an attempt. first_s: when it saw it first; moved_s: when its sampler's
    number last changed; by the reader's own clock."""

    attempt: int
    holder: str
    first_s: float
    beat: int = -1
    moved_s: float = 0.0


class Lookout:
    """Watches attempts at parts. seconds: of a lease. clock: monotonic."""

    def __init__(
        self, files: Files, key: bytes, seconds: float, clock: Clock = time.monotonic
    ) -> None:
        self._files, self._key, self._clock = files, key, clock
        self.seconds = seconds
        self._watched: dict[Unit, Watched] = {}

    def newest(self, unit: Unit) -> Watched | None:
        """The last attempt at a part; None before the first. Raises OSError."""
        watched = self._watched.get(unit)
        number = watched.attempt + 1 if watched else 1
        while (holder := self._holder(unit, number)) is not None:
            now = self._clock()
            watched = self._watched[unit] = Watched(number, holder, now, moved_s=now)
            number += 1
        return watched

    def lost(self, watched: Watched) -> bool:
        """Whether nothing more is to be expected of an attempt. Raises OSError."""
        now = self._clock()
        facts = self._facts(sampler_name(watched.holder))
        beat = int(facts.get("count", -1)) if facts else -1
        if beat != watched.beat:
            watched.beat, watched.moved_s = beat, now
        return now - watched.moved_s > self.seconds or now - watched.first_s > SLOW * self.seconds

    def keep(self, units: Sequence[Unit]) -> None:
        """Forget all other parts."""
        self._watched = {u: w for u, w in self._watched.items() if u in set(units)}

    def _holder(self, unit: Unit, attempt: int) -> str | None:
        name = unit.lease(attempt)
        facts = self._facts(name)
        if facts is None:
            return None if not self._files.has(name) else "?"  # damaged: nobody's, and it runs out
        return str(facts.get("sampler", "?"))

    def _facts(self, name: str) -> dict[str, Any] | None:
        try:
            return get_facts(self._files, name, self._key)
        except Refused:
            return None


class Leases:
    """Takes leases for one sampler, and gives its signs of life.

    name: the sampler's, of this start of it alone. clock: see `Lookout`.
    """

    def __init__(
        self,
        files: Files,
        name: str,
        key: bytes,
        seconds: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self.refused: list[str] = []  # why the trainer took nothing of own attempts, in a row
        self._files, self._name, self._key, self._clock = files, name, key, clock
        self._lookout = Lookout(files, key, seconds, clock)
        self._count = 0
        self._beat_s = -float("inf")
        self._judged: set[str] = set()

    def take(self, units: Sequence[Unit]) -> tuple[Unit, int] | None:
        """Take the first part that nobody is at: the part and the attempt. Raises OSError."""
        self._lookout.keep(units)
        for unit in units:
            attempt = self._open_attempt(unit)
            if attempt is None:
                continue
            facts = {"sampler": self._name}
            if put_new_facts(self._files, unit.lease(attempt), facts, self._key):
                return unit, attempt
        return None

    def beat(self, doing: str, *, now: bool = False) -> None:
        """Give a sign of life, where one is due. doing: for people. Raises OSError."""
        if not now and self._clock() - self._beat_s < self._lookout.seconds / BEATS:
            return
        self._count += 1
        facts = {"count": self._count, "doing": doing}
        put_facts(self._files, sampler_name(self._name), facts, self._key)
        self._beat_s = self._clock()

    def _open_attempt(self, unit: Unit) -> int | None:
        """The number of the attempt to begin; None while there is a result, or hope of one."""
        watched = self._lookout.newest(unit)
        if watched is None:
            return 1
        if self._was_refused(unit, watched):
            return watched.attempt + 1
        if self._files.has(unit.rollouts(watched.attempt, watched.holder)):
            return None
        return watched.attempt + 1 if self._lookout.lost(watched) else None

    def _was_refused(self, unit: Unit, watched: Watched) -> bool:
        name = unit.refusal(watched.attempt)
        if not self._files.has(name):
            return False
        if watched.holder == self._name and name not in self._judged:
            self._judged.add(name)
            facts = get_facts(self._files, name, self._key) or {}
            self.refused.append(str(facts.get("why", "")))
        return True
