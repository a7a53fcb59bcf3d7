"""Calls of tools, many at a time: whatever a tool does, a call has an outcome within its seconds.

Calls run in threads, while the caller decodes on. A tool that overruns its time is left behind with
its thread, and another thread takes that one's place: none of the calls beside it waits for it.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rntp.errors import RntpError, is_out_of_memory
from rntp.runtime.key_store import key_of
from rntp.tools.cache import Cache
from rntp.tools.page import Failure, Outcome, Page, Quote, Tool, split_call
from rntp.tools.strict import Withheld

# What a thought reads where a call has no result: short, and the same for every call of the kind.
TEXTS = {
    "unknown_tool": "no such tool",
    "out_of_time": "out of time",
    "nothing_found": "nothing found",
    "raised": "failed",
}
# Threads that may be left behind with calls that do not end, before the run is told to stop.
MOST_LEFT_BEHIND = 64
# Quotes of other documents that are looked at.
_MOST_QUOTES = 50
# Between two looks at the clock, seconds: how much later than its limit a call may be given up.
_TICK_S = 0.05


@dataclass(slots=True)
class Ask:
    """A call that was handed in.

    outcome: None until it is stored and so may be read. began: seconds, of `time.monotonic`. came:
    what the thread that runs it has brought. late: it was given up before.
    """

    name: str
    arguments: str
    page: Page
    withheld: Withheld
    key: bytes
    outcome: Outcome | None = None
    began: float | None = None
    came: Outcome | None = None
    late: bool = False


class Desk:
    """Take calls, and hand out their outcomes.

    tools: by the name that a thought calls. seconds: a call may take, from its start on. workers:
    calls that run at a time. waited_s: seconds in which whoever asks could do nothing but wait.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        cache: Cache,
        *,
        seconds: float = 5.0,
        workers: int = 2,
    ) -> None:
        self._tools = tools
        self._cache = cache
        self._seconds = seconds
        self._queue: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._open: dict[bytes, Ask] = {}
        self._news = threading.Condition()
        self._left_behind = 0
        self.waited_s = 0.0
        for _ in range(workers):
            self._start_worker()
        self._workers = workers

    def ask(self, call: str, page: Page, withheld: Withheld) -> Ask:
        """Hand in a call, `NAME ARGUMENTS`. The same call twice at a time runs once."""
        name, arguments = split_call(call)
        tool = self._tools.get(name)
        if tool is None:
            asked = Ask(name, arguments, page, withheld, b"")
            asked.outcome = Outcome("", TEXTS["unknown_tool"], "unknown_tool")
            return asked
        key = self._key(name, tool, arguments, page, withheld)
        if key in self._open:
            return self._open[key]
        asked = Ask(name, arguments, page, withheld, key, self._cache.get(key))
        if asked.outcome is None:
            self._open[key] = asked
            self._queue.put(asked)
        return asked

    def settle(self, asked: Sequence[Ask], *, wait: bool) -> list[Outcome | None]:
        """Outcomes of calls, None for those that still run; with `wait` there are none of these.

        What is handed out is stored first: whatever a thought has read is there for a resume.
        """
        self._collect()
        while wait and any(a.outcome is None for a in asked):
            with self._news:
                if not any(a.came for a in asked if a.outcome is None):
                    self._news.wait(_TICK_S)
            self._collect()
        return [a.outcome for a in asked]

    def pause(self) -> None:
        """Wait until a call has ended, or it is time to look at the clock."""
        began = time.perf_counter()
        with self._news:
            if not any(asked.came for asked in self._open.values()):
                self._news.wait(_TICK_S)
        self.waited_s += time.perf_counter() - began

    def close(self) -> None:
        """End threads and tools. Calls that still run are dropped."""
        for _ in range(self._workers):
            self._queue.put(None)
        for tool in self._tools.values():
            tool.close()
        self._cache.close()

    def _key(self, name: str, tool: Tool, arguments: str, page: Page, withheld: Withheld) -> bytes:
        facts: list[object] = [name, tool.digest, arguments]
        if tool.reads_page:
            facts += [page.document_id, page.token_ids, *([page.lost] if page.lost else [])]
        if tool.strict is not None:
            strict = tool.strict
            facts += [strict.ngram, strict.near, strict.quotes, *withheld.identity]
        return key_of(*facts)

    def _start_worker(self) -> None:
        threading.Thread(target=self._work, name="tool", daemon=True).start()

    def _work(self) -> None:
        while (asked := self._queue.get()) is not None:
            asked.began = time.monotonic()
            outcome = self._run(asked)
            with self._news:
                if asked.late:  # another thread has this one's place
                    self._left_behind -= 1
                    return
                asked.came = outcome
                self._news.notify_all()

    def _run(self, asked: Ask) -> Outcome:
        tool, began = self._tools[asked.name], time.perf_counter()
        withheld: Counter[str] = Counter()
        failure = ""
        try:
            result = tool(asked.arguments, asked.page)
            text = result if isinstance(result, str) else self._given(tool, result, asked, withheld)
        except Failure as error:
            text, failure = error.text, error.kind
        except Exception as error:  # a tool is anybody's code, and no reason to lose a run
            if is_out_of_memory(error):
                failure = "out_of_memory"
            text, failure = TEXTS["raised"], failure or "raised"
        seconds = time.perf_counter() - began
        return Outcome(asked.name, text, failure, dict(+withheld), seconds)

    def _given(
        self, tool: Tool, quotes: Iterable[Quote], asked: Ask, withheld: Counter[str]
    ) -> str:
        """Join the first quotes that may be given. Raises Failure where there is none."""
        if tool.strict is None:
            raise TypeError(f"the tool {asked.name!r} quotes documents and has no `strict`")
        given: list[str] = []
        for quote in quotes:
            reason = tool.strict.refuses(quote, asked.withheld)
            if reason:
                withheld[reason] += 1
            else:
                given.append(quote.text)
            # A long page has many pieces of its own, and they cost nothing to pass over.
            looked_at = len(given) + withheld.total() - withheld["same_page"]
            if len(given) == tool.strict.quotes or looked_at == _MOST_QUOTES:
                break
        if not given:
            raise Failure("nothing_found", TEXTS["nothing_found"])
        return "\n".join(given)

    def _collect(self) -> None:
        """Take the outcomes that are there, give up calls that overran, and store both."""
        now = time.monotonic()
        came: dict[bytes, Outcome] = {}
        for key, asked in self._open.items():
            with self._news:
                overran = asked.began is not None and now - asked.began > self._seconds
                if asked.came is None and overran:
                    asked.late = True
                    asked.came = self._overrun(asked)
                if asked.came is not None:
                    came[key] = asked.came
        if came:
            self._cache.put(came)
        for key, outcome in came.items():
            self._open.pop(key).outcome = outcome

    def _overrun(self, asked: Ask) -> Outcome:
        self._left_behind += 1
        if self._left_behind > MOST_LEFT_BEHIND:
            raise RntpError(
                f"{self._left_behind} calls of tools did not end within their {self._seconds:g} "
                f"seconds and still run, the last of {asked.name!r}; give the tool a limit of its "
                "own, or raise the seconds of a call"
            )
        self._start_worker()
        text, kind = TEXTS["out_of_time"], "out_of_time"
        return Outcome(asked.name, text, kind, {}, self._seconds)
