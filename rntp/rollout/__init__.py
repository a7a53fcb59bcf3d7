"""Rollout engines: they sample the thoughts.

An engine has one method, `sample(contexts, place, check)`; see `Engine`.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from rntp.placement import Place
from rntp.types import Context, Rollout

# Called often while sampling; raises to stop (see `rntp.types.Preempted`).
Check = Callable[[], None]


class Engine(Protocol):
    """What the trainer asks of a sampler."""

    def sample(
        self, contexts: Sequence[Context], place: Place, check: Check, policy_version: int = 0
    ) -> list[Rollout]:
        """One rollout a context, in order; no thought depends on the contexts beside its own."""
        ...


def no_check() -> None:
    """Never stops."""
