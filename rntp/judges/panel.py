"""Several judges, many questions at a time: what is asked once is never asked again.

Verdicts are stored before they are used, by the model, the question and its texts. What is missing
is stored once a step goes on without it, so that a resumed run sees what the first one saw.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Protocol

from rntp.judges.prompts import VERSION, Case, Message, Sees, Style, messages
from rntp.judges.rules import Rule, rule_says
from rntp.runtime.key_store import KeyStore, key_of
from rntp.types import Verdict

# Seconds between two looks whether the run is to stop.
_TICK_S = 0.2


class Asks(Protocol):
    """What a panel needs of an endpoint."""

    style: Style

    @property
    def identity(self) -> list[object]: ...

    def ask(self, messages: Sequence[Message]) -> Verdict: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Graded:
    """Cases under way: keys of each by judge, what was asked for, and what is known."""

    keys: list[dict[str, bytes]]
    asked: dict[bytes, Future[Verdict]]
    found: dict[bytes, Verdict]


class Panel:
    """Grades cases by every judge.

    judges: by name. at_once: questions under way at a time, over all judges. calls, tokens: that
    this rank may spend in all of its run, 0 for no limit; what is beyond is missing. rule: grades
    before any judge, and where it says yes none is asked.
    """

    def __init__(
        self,
        judges: dict[str, Asks],
        store: KeyStore,
        *,
        sees: Sees,
        rule: Rule = "none",
        at_once: int = 8,
        calls: int = 0,
        tokens: int = 0,
    ) -> None:
        self.judges = judges
        self._store, self._sees, self._rule = store, sees, rule
        self._calls, self._tokens = calls, tokens
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="judge")
        self._lock = threading.Lock()  # of the store, and of what was spent
        self._missing: dict[bytes, Verdict] = {}
        own = list(store.own())
        self.asked, self.spent = len(own), sum(reply["tokens"] for reply in own)

    def begin(self, cases: Sequence[Case], *, by_rule: bool = True) -> "Graded":
        """Put questions under way and do not wait for replies; see `finish`.

        Equal cases are asked once. Cases that a judge failed before are asked again. by_rule: let
        the panel's rule grade first; an empty answer is wrong then, and nobody is asked.
        """
        keys = [{name: self._key(name, case) for name in self.judges} for case in cases]
        asked: dict[bytes, Future[Verdict]] = {}
        found: dict[bytes, Verdict] = {}
        for case, by_name in zip(cases, keys, strict=True):
            ruled = None
            if by_rule:
                ruled = rule_says(self._rule, case) if case.answer.strip() else 0.0
            if ruled is not None:
                found |= dict.fromkeys(by_name.values(), Verdict(ruled))
                continue
            for name, key in by_name.items():
                if key in found or key in asked:
                    continue
                with self._lock:
                    stored = self._store.get(key)
                if stored is not None:
                    found[key] = Verdict(**stored)
                else:
                    asked[key] = self._pool.submit(self._ask, name, case, key)
        return Graded(keys, asked, found)

    def finish(
        self, graded: "Graded", check: Callable[[], None] = lambda: None
    ) -> list[dict[str, Verdict]]:
        """Wait for the replies of all judges to every case, in order. check: called often; raises
        to stop."""
        left = dict(graded.asked)
        try:
            while left:
                check()
                wait(left.values(), _TICK_S, "FIRST_COMPLETED")
                for key in [key for key, future in left.items() if future.done()]:
                    graded.found[key] = verdict = left.pop(key).result()
                    if verdict.yes is None:
                        self._missing[key] = verdict
                    else:
                        self._missing.pop(key, None)
        finally:
            for future in left.values():
                future.cancel()
        return [{name: graded.found[key] for name, key in by.items()} for by in graded.keys]

    def grade(
        self,
        cases: Sequence[Case],
        check: Callable[[], None] = lambda: None,
        *,
        by_rule: bool = True,
    ) -> list[dict[str, Verdict]]:
        """`begin`, then `finish`."""
        return self.finish(self.begin(cases, by_rule=by_rule), check)

    def accept_missing(self) -> None:
        """Store the verdicts that did not come, now that a step goes on without them."""
        with self._lock:
            self._store.put({key: asdict(verdict) for key, verdict in self._missing.items()})
        self._missing.clear()

    def close(self) -> None:
        """End threads and connections. Questions under way are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for judge in self.judges.values():
            judge.close()
        self._store.close()

    def _ask(self, name: str, case: Case, key: bytes) -> Verdict:
        """Ask, in a thread of the pool; a verdict is on the disk before anybody uses it."""
        if 0 < self._calls <= self.asked or 0 < self._tokens <= self.spent:
            return Verdict(None, "over_budget")
        judge = self.judges[name]
        with self._lock:
            self.asked += 1
        verdict = judge.ask(messages(case, self._sees, judge.style))
        with self._lock:
            self.spent += verdict.tokens
            if verdict.yes is not None:
                self._store.put({key: asdict(verdict)})
        return verdict

    def _key(self, name: str, case: Case) -> bytes:
        truth = case.truth if self._sees == "continuation" else ""
        facts = [case.page, case.answer, truth]
        return key_of(VERSION, self.judges[name].identity, self._sees, *facts)


def wait_for_judges(seconds: float, check: Callable[[], None]) -> None:
    """Wait before missing verdicts are asked for again."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check()
        time.sleep(min(_TICK_S, max(0.0, end - time.monotonic())))
