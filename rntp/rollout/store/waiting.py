"""Waiting for a store and for samplers, with a bound, and saying so."""

import time
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

from rntp.errors import SamplersLost
from rntp.rollout import Check
from rntp.rollout.store.leases import Clock

FIRST_S, LONGEST_S = 0.01, 0.5  # between two looks: longer and longer
TELL_EVERY_S = 30.0
TELL_FIRST_S = 10.0

T = TypeVar("T")
Say = Callable[[str, Literal["info", "warning", "error"]], None]
"""Tells people a line, with its level."""


class Waiting:
    """Waits at most `wait_s` seconds without a sign of life of anybody, or of the store."""

    def __init__(
        self,
        wait_s: float,
        say: Say,
        clock: Clock = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wait_s, self._say, self._clock, self._pause = wait_s, say, clock, pause
        self.begin()

    def begin(self) -> None:
        """Begin to wait for something new."""
        now = self._clock()
        self._alive_s, self._next_told_s = now, now + TELL_FIRST_S
        self._between_s = FIRST_S

    def wait(self, lives: bool, who: Callable[[], str]) -> None:
        """Wait until the next look. lives: somebody does. who: is missing, for people.

        Raises SamplersLost past the bound.
        """
        now = self._clock()
        if lives:
            self._alive_s = now
        silent_s = now - self._alive_s
        if silent_s > self._wait_s:
            raise SamplersLost(
                f"{who()}, and no sampler gave a sign of life for {silent_s:.0f} s "
                "(rollout.samplers.wait_s); start one with `rntp sample STORE`, and the same "
                "command resumes"
            )
        if now >= self._next_told_s:
            self._say(f"waiting for samplers: {who()}", "info" if lives else "warning")
            self._next_told_s = now + TELL_EVERY_S
        self._pause(self._between_s)
        self._between_s = min(2 * self._between_s, LONGEST_S)

    def away(self, error: OSError) -> None:
        """Wait for a store that does not answer. Raises SamplersLost past the bound."""
        self.wait(False, lambda: f"the store does not answer ({error})")

    def through(self, work: Callable[[], T], what: str, check: Check) -> T:
        """Return what `work` gives, tried again while the store does not answer or is full.

        Raises SamplersLost past the bound.
        """
        self.begin()
        while True:
            check()
            try:
                return work()
            except OSError as error:
                told = f"{what}: the store does not take or give it ({error})"
                self.wait(False, partial(str, told))
