"""Bars are for a terminal, and for the first rank."""

import io
import re
import sys
import types

import pytest
from rich.console import Console

from rntp.runtime import progress
from rntp.runtime.progress import Bars, hide_library_bars, is_shown


def drawn(*calls: tuple[str, int, int], terminal: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, _environ={"TERM": "xterm"})
    with Bars(console) as bars:
        for name, done, total in calls:
            bars(name, done, total)
        if bars._progress is not None:
            bars._progress.refresh()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


def test_a_bar_for_each_part_with_the_time_that_is_left() -> None:
    text = drawn(("evaluate", 0, 40), ("evaluate", 10, 40), ("score", 3, 12))
    assert "10/40" in text
    assert "3/12" in text
    assert re.search(r"evaluate .*eta", text)
    assert re.search(r"score .*eta", text)


def test_without_a_terminal_nothing_is_drawn(capsys: pytest.CaptureFixture) -> None:
    assert drawn(("evaluate", 10, 40), terminal=False) == ""
    with Bars() as bars:
        bars("evaluate", 1, 2)
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "")


@pytest.mark.parametrize(
    ("terminal", "rank", "shown"),
    [(True, None, True), (True, "0", True), (True, "1", False), (False, None, False)],
)
def test_the_first_rank_shows_bars_where_a_terminal_is(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, rank: str | None, shown: bool
) -> None:
    monkeypatch.setattr(progress.sys, "stderr", types.SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_shown() is shown


def test_bars_of_libraries_go_where_a_run_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    logging = types.SimpleNamespace(disable_progress_bar=lambda: called.append(1))
    module = types.SimpleNamespace(utils=types.SimpleNamespace(logging=logging))
    monkeypatch.setitem(sys.modules, "transformers", module)
    hide_library_bars()
    assert called == [1]
    monkeypatch.delitem(sys.modules, "transformers")
    hide_library_bars()


def test_a_log_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setenv("RANK", "0")
    with Bars() as bars:
        for done in range(10):
            clock[0] = 25.0 * done
            bars("pages", done, 20)
    # At 75, 150 and 225 s; 25 s for each that is left.
    assert capsys.readouterr().err.splitlines() == [
        "pages 3/20, 7 min left",
        "pages 6/20, 6 min left",
        "pages 9/20, 5 min left",
    ]
    monkeypatch.setenv("RANK", "1")
    with Bars() as bars:
        for done in range(10):
            clock[0] += 100.0
            bars("pages", done, 20)
    assert capsys.readouterr().err == ""
