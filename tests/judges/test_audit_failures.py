"""An audit says why verdicts are missing, and what to do about it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import tiny_run

from rntp.config import Config
from rntp.errors import JudgesAway
from rntp.judges.attacks import Audit, audit
from rntp.judges.auditing import Auditor
from rntp.types import Verdict


def panel(*failures: str) -> Any:
    """Two judges: one says yes, the other fails in turn in the ways that are given."""

    def grade(cases: list[Any], *_: object, **__: object) -> list[dict[str, Verdict]]:
        ways = (failures[n % len(failures)] for n in range(len(cases)))
        return [{"a": Verdict(0.9), "b": Verdict(None, way)} for way in ways]

    return SimpleNamespace(judges=("a", "b"), grade=grade, accept_missing=lambda: None)


def both(reply: dict[str, Verdict]) -> float | None:
    return None if any(v.yes is None for v in reply.values()) else 1.0


def test_kinds_of_failures_are_counted_by_judge() -> None:
    found = audit(panel("unclear", "out_of_time"), [("Page.", " truth"), ("Other.", " fact")], both)
    asked = found["a"].asked
    assert (found["a"].missing, found["a"].failures) == (0, {})
    assert found["b"].missing == asked
    assert found["b"].failures == {"unclear": asked // 2, "out_of_time": asked // 2}
    assert found["together"].failures == found["b"].failures


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        ("unclear", "verdict: word, or a stronger model"),
        ("out_of_time", "raise reward.judges.seconds"),
        ("unreachable", "see that the servers run"),
    ],
)
def test_a_judge_that_says_nothing_ends_the_audit_with_the_reason(
    failure: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"together": Audit({}, 0.0, 28, 28, {failure: 27, "server": 1})}
    monkeypatch.setattr("rntp.judges.auditing.audit", lambda *_: found)
    use = {"mine": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
    raw = tiny_run(Path("none"), tmp_path, tmp_path / "run")
    raw["thought"]["answer_tokens"] = 2
    raw["reward"] |= {"scheme": "judge", "judges": {"use": use}}
    config = Config.parse(raw)
    corpus = SimpleNamespace(reused_contexts=lambda count: [])
    auditor = Auditor(config, corpus, str)  # type: ignore[arg-type]
    with pytest.raises(JudgesAway, match=rf"127.0.0.1:1/v1 \(27 {failure}, 1 server\); .*{remedy}"):
        auditor.audit(panel(failure))
