"""What an evaluation says of calls, by numbers worked out by hand."""

from typing import Any

import pytest

from rntp.evaluation.tool_use import tool_use
from rntp.tools import Withheld
from rntp.tools.strict import longest_shared


def thought(gain: float, **more: Any) -> dict[str, Any]:
    return {"logp_think": [-2.0 + gain, -2.0 + gain], **more}


def call(failure: str = "", **withheld: int) -> dict[str, Any]:
    return {"name": "search", "arguments": "x", "failure": failure, **withheld}


def page(*thoughts: dict[str, Any]) -> dict[str, Any]:
    return {"positions": [{"logp_empty": [-1.0, -3.0], "thoughts": list(thoughts)}]}


def test_gains_are_told_apart_by_what_was_called() -> None:
    pages = [
        page(
            thought(0.5, calls=[call(same_page=2)], shared_words=2),
            thought(-0.1, calls=[call(), call("nothing_found", same_page=3)], shared_words=1),
            thought(0.0),
        ),
        page(
            thought(2.0, calls=[call()], shared_words=6),
            thought(0.2, calls=[call("unknown_tool")], shared_words=0),
            thought(0.4),
        ),
    ]
    found = tool_use(pages, seed=1)["tools"]
    assert found["calls_per_thought"] == pytest.approx(5 / 6)
    assert found["failures"] == {"nothing_found": 1, "unknown_tool": 1}
    assert found["withheld"] == {"same_page": 5}
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["called"]["gain/mean"] == pytest.approx(2.6 / 4)
    assert found["not_called"]["gain/mean"] == pytest.approx(0.2)
    low, middle, high = found["by_shared"].values()
    assert (low["thoughts"], middle["thoughts"], high["thoughts"]) == (2, 1, 0)
    assert low["gain/mean"] == pytest.approx(0.2)
    assert middle["gain/mean"] == pytest.approx(2.0)
    assert high["gain/mean"] is None


def test_nothing_is_said_where_nothing_was_called() -> None:
    assert tool_use([page(thought(1.0))], seed=1) == {}
    found = tool_use([page(thought(1.0, calls=[call("raised")], shared_words=0))], seed=1)
    assert found["tools"]["precision"] is None


def test_the_longest_run_that_a_result_shares() -> None:
    withheld = Withheld("page", "a b c d e f g", "a b c", " d e f g")
    assert longest_shared("x c d e y", withheld) == 3
    assert longest_shared("a b c", withheld) == 0
    assert longest_shared("g", withheld) == 1
    assert longest_shared("a b c d e f g", withheld) == 7
    assert longest_shared("a b c d e f g", withheld, most=4) == 4
