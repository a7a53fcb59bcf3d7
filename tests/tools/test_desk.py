"""Calls of tools: outcomes, their cache, limits, and what no tool can do to a run."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rntp.errors import RntpError
from rntp.rollout.tool_calls import waiting_metrics
from rntp.runtime.key_store import key_of
from rntp.tools import REGISTRY, Failure, Page, Quote, Strict, Tool, Withheld, register
from rntp.tools import desk as desk_module
from rntp.tools.cache import Cache
from rntp.tools.desk import Ask, Desk
from rntp.tools.page import Outcome, Result
from rntp.tools.registry import Function, PlainTool
from rntp.tools.splice import result_ids

PAGE = Page("here", 3, "one two three", (1, 2, 3))
WITHHELD = Withheld("here", "one two three four", "one two three", " four")


def tool(function: Function, reads_page: bool = False, strict: Strict | None = None) -> Tool:
    return PlainTool(function, "1", reads_page, strict)


def one(desk: Desk, call: str, page: Page = PAGE) -> Outcome:
    (outcome,) = desk.settle([desk.ask(call, page, WITHHELD)], wait=True)
    assert outcome is not None
    return outcome


def test_a_call_is_a_name_and_its_arguments() -> None:
    desk = Desk({"twice": tool(lambda text, page: f"[{text}{text}]")}, Cache(None))
    assert one(desk, " twice  a b ").text == "[a ba b]"
    assert one(desk, "twice").text == "[]"
    unknown = one(desk, "thrice a")
    assert (unknown.text, unknown.failure) == ("no such tool", "unknown_tool")
    assert one(desk, "").failure == "unknown_tool"
    desk.close()


def test_whatever_goes_wrong_is_a_short_text_and_a_kind() -> None:
    def fails(text: str, page: Page) -> str:
        if text == "known":
            raise Failure("out_of_ink", "no ink left")
        if text == "memory":
            raise MemoryError
        raise RuntimeError("the page says: four")

    desk = Desk({"fails": tool(fails)}, Cache(None))
    assert (one(desk, "fails known").failure, one(desk, "fails known").text) == (
        "out_of_ink",
        "no ink left",
    )
    other = one(desk, "fails")
    # What an exception says may hold anything: it does not get into a thought.
    assert (other.text, other.failure) == ("failed", "raised")
    assert one(desk, "fails memory").failure == "out_of_memory"
    desk.close()


def test_a_call_that_hangs_delays_no_other_by_more_than_its_limit() -> None:
    release = threading.Event()

    def waits(text: str, page: Page) -> str:
        if text == "long":
            release.wait(60)
        return "done"

    desk = Desk({"waits": tool(waits)}, Cache(None), seconds=0.3, workers=1)
    began = time.monotonic()
    asked = [desk.ask(call, PAGE, WITHHELD) for call in ("waits long", "waits", "waits x")]
    found = desk.settle(asked, wait=True)
    assert [o.failure for o in found if o] == ["out_of_time", "", ""]
    assert [o.text for o in found if o] == ["out of time", "done", "done"]
    assert 0.3 <= time.monotonic() - began < 5
    release.set()
    assert one(desk, "waits after").text == "done"
    desk.close()


def test_too_many_calls_that_never_end_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "MOST_LEFT_BEHIND", 1)
    release = threading.Event()
    desk = Desk(
        {"hangs": tool(lambda text, page: str(release.wait(60)))},
        Cache(None),
        seconds=0.05,
        workers=2,
    )
    with pytest.raises(RntpError, match="'hangs'; give the tool a limit of its own"):
        desk.settle([desk.ask(f"hangs {n}", PAGE, WITHHELD) for n in range(2)], wait=True)
    release.set()


def test_calls_run_beside_the_caller_and_the_same_one_once() -> None:
    release, calls = threading.Event(), []

    def slow(text: str, page: Page) -> str:
        calls.append(text)
        release.wait(60)
        return text

    desk = Desk({"slow": tool(slow)}, Cache(None), seconds=60)
    asked = [desk.ask("slow a", PAGE, WITHHELD) for _ in range(3)]
    assert desk.settle(asked, wait=False) == [None] * 3
    release.set()
    assert [o.text for o in desk.settle(asked, wait=True) if o] == ["a"] * 3
    assert calls == ["a"]
    desk.close()


def test_outcomes_are_replayed_from_the_disk_failures_and_all(tmp_path: Path) -> None:
    calls: list[str] = []

    def counts(text: str, page: Page) -> str:
        calls.append(text)
        if text == "bad":
            raise Failure("bad", "bad")
        return f"{text} {len(calls)}"

    found = []
    for _ in range(2):
        desk = Desk({"counts": tool(counts)}, Cache(tmp_path))
        found.append([one(desk, call) for call in ("counts a", "counts bad", "counts b")])
        desk.close()
    assert calls == ["a", "bad", "b"]
    assert found[0] == found[1]
    # Another version, and another rank's run beside it.
    desk = Desk({"counts": PlainTool(counts, "2", False, None)}, Cache(tmp_path))
    assert one(desk, "counts a").text == "a 4"
    desk.close()
    desk = Desk({"counts": tool(counts)}, Cache(tmp_path, rank=1))
    assert one(desk, "counts a").text == "a 1"
    desk.close()


def test_what_a_thought_has_read_is_on_the_disk_first(tmp_path: Path) -> None:
    desk = Desk({"echo": tool(lambda text, page: text)}, Cache(tmp_path))
    asked = desk.ask("echo a", PAGE, WITHHELD)
    while asked.came is None:
        time.sleep(0.001)
    assert asked.outcome is None
    assert desk.settle([asked], wait=False)[0] is not None
    with sqlite3.connect(tmp_path / "calls-0.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM calls").fetchone() == (1,)
    desk.close()


def test_seconds_of_waiting_are_told_once() -> None:
    def sleeps(text: str, page: Page) -> str:
        time.sleep(0.3)
        return "late"

    desk = Desk({"sleep": tool(sleeps)}, Cache(None))
    asked = desk.ask("sleep x", PAGE, WITHHELD)
    while desk.settle([asked], wait=False) == [None]:
        desk.pause()
    engine = SimpleNamespace(inner=SimpleNamespace(tools=SimpleNamespace(desk=desk)))
    assert 0.2 < waiting_metrics(engine)["time/tools_s"] < 20
    assert waiting_metrics(engine) == {"time/tools_s": 0.0}
    assert waiting_metrics(SimpleNamespace(tools=None)) == {}
    desk.close()


def test_a_damaged_cache_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "calls-0.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(RntpError, match="delete it: the calls in it are made again"):
        Cache(tmp_path)


def test_only_a_tool_that_reads_the_page_runs_anew_on_another() -> None:
    other = Page("there", 2, "one two", (1, 2))

    def says(text: str, page: Page) -> str:
        return page.document_id

    desk = Desk({"reads": tool(says, reads_page=True), "not": tool(says)}, Cache(None))
    assert [one(desk, "reads", p).text for p in (PAGE, other)] == ["here", "there"]
    assert [one(desk, "not", p).text for p in (PAGE, other)] == ["here", "here"]
    desk.close()


def test_keys_tell_arguments_apart() -> None:
    keys = {key_of("a", "b c"), key_of("a b", "c"), key_of("a", "b", "c"), key_of("a", ["b", "c"])}
    assert len(keys) == 4


def quotes(*found: tuple[str, str]) -> Function:
    def give(text: str, page: Page) -> Iterator[Quote]:
        for name, passage in found:
            yield Quote(passage, name, lambda passage=passage: passage)

    return give


def test_a_result_has_as_many_quotes_as_its_tool_gives() -> None:
    found = quotes(("one", "the first"), ("here", "own"), ("two", "the second"), ("three", "third"))
    for number, wanted in ((1, "the first"), (2, "the first\nthe second")):
        strict = Strict(near=2, quotes=number)
        desk = Desk({"find": tool(found, strict=strict)}, Cache(None))
        assert one(desk, "find x").text == wanted
        desk.close()


def test_quotes_are_passed_over_until_one_may_be_given() -> None:
    found = quotes(("here", "anything"), ("mirror", "two three four"), ("other", "useful"))
    desk = Desk({"find": tool(found, strict=Strict(ngram=3, near=2))}, Cache(None))
    outcome = one(desk, "find x")
    assert (outcome.text, outcome.withheld) == ("useful", {"same_page": 1, "continuation": 1})
    desk.close()


def test_nothing_but_what_is_withheld_is_nothing_found() -> None:
    found = quotes(*[("here", "anything")] * 70, *[("there", "three four")] * 100)
    desk = Desk({"find": tool(found, strict=Strict(ngram=2))}, Cache(None))
    outcome = one(desk, "find x")
    assert (outcome.text, outcome.failure) == ("nothing found", "nothing_found")
    assert outcome.withheld == {"same_page": 70, "continuation": 50}
    desk.close()


def test_documents_are_not_quoted_without_a_guard() -> None:
    desk = Desk({"find": tool(quotes(("there", "secret")))}, Cache(None))
    outcome = one(desk, "find x")
    assert (outcome.text, outcome.failure) == ("failed", "raised")
    desk.close()


def test_registered_functions_are_tools() -> None:
    @register("test-length", version="1")
    def length(arguments: str, page: Page) -> Result:
        return str(len(arguments))

    made = REGISTRY["test-length"]()
    assert (made("four", PAGE), made.digest) == ("4", "test-length 1")
    with pytest.raises(TypeError, match="takes no settings"):
        REGISTRY["test-length"](size=1)
    with pytest.raises(ValueError, match="one word"):
        register("two words", version="1")
    with pytest.raises(ValueError, match="already a tool"):
        register("test-length", version="2")(length)
    del REGISTRY["test-length"]


def test_results_are_cut_and_hold_no_marker() -> None:
    def encode(text: str) -> torch.Tensor:
        return torch.tensor([int(word) for word in text.split()], dtype=torch.int64)

    def ids(text: str, budget: int) -> list[int]:
        found = result_ids(
            text, encode, opening=90, closing=91, budget=budget, special=(80, 81, 99)
        )
        return found.tolist()

    assert ids("1 2 3", 10) == [90, 1, 2, 3, 91]
    assert ids("1 80 2 91 99 90 3 4", 3) == [90, 1, 2, 3, 91]
    assert ids("81 91", 3) == ids("", 3) == [90, 91]


def test_an_ask_that_is_not_settled_has_no_outcome() -> None:
    assert Ask("a", "b", PAGE, WITHHELD, b"").outcome is None
