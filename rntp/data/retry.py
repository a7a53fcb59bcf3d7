"""Trying again: full jitter between tries, and a deadline for all of them together.

Waits are uniform in [0, min(CAP_S, BASE_S · 2^n)] after try n (Brooker, "Exponential backoff and
jitter", 2015), so that many ranks do not come back at the same moment. What a server asks for in
Retry-After is waited for. Draws come from the system: waiting changes no data.
"""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from rntp.errors import DataError

BASE_S = 0.2
CAP_S = 30.0

T = TypeVar("T")


class Transient(Exception):
    """A try that failed and may go well later. retry_after_s: what the server asks for, or 0."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def retrying(
    attempt: Callable[[], T],
    *,
    what: str,
    deadline_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    draw: Callable[[float, float], float] = random.uniform,
) -> T:
    """Return what `attempt` gives, tried again while it raises Transient and `deadline_s` seconds
    last.

    what: names it in the message. Raises DataError with the number of tries and the last reason.
    """
    start = clock()
    tries = 0
    while True:
        try:
            return attempt()
        except Transient as error:
            tries += 1
            wait = max(draw(0.0, min(CAP_S, BASE_S * 2**tries)), error.retry_after_s)
            if clock() - start + wait > deadline_s:
                raise DataError(
                    f"{what} could not be read in {deadline_s:g} s ({tries} tries, the last: "
                    f"{error}); check the network and the server, and start again with the same "
                    "command"
                ) from error
            sleep(wait)
