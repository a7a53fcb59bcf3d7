"""What a preparation says while it lasts."""

import json
import time
from pathlib import Path

import pytest
from rntp_data_prep import progress
from rntp_data_prep.progress import Pace, joined, told, weights


def test_the_rest_goes_by_what_was_gained_since_the_start() -> None:
    now = [100.0]
    pace = Pace(done=0.2, clock=lambda: now[0])
    assert pace.eta(0.2) == ""
    assert pace.eta(0.2 + 1e-16) == ""  # what sums of fractions leave
    now[0] = 140.0
    assert pace.eta(0.6) == "eta 40s"  # 0.4 in 40 s, and 0.4 to come
    assert pace.eta(0.24) == "eta 12m40s"
    assert pace.eta(0.205) == "eta 1h46m"
    assert pace.eta(1.0) == "eta 0s"
    assert pace.a_second(80) == 2.0
    assert joined("a", "", "b") == "a, b"


def test_sources_weigh_their_bytes(tmp_path: Path) -> None:
    for name, size in (("a", 100), ("b", 300)):
        (tmp_path / name).write_bytes(bytes(size))
    named = [str(tmp_path / "a"), "hf:unknown", str(tmp_path / "b")]
    assert weights(named) == [pytest.approx(1 / 6), pytest.approx(2 / 6), pytest.approx(3 / 6)]
    assert weights(["hf:a", "hf:b"]) == [0.5, 0.5]


def test_a_line_is_said_once_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.01)
    said: list[str] = []
    lines = ["1 of 3", "2 of 3"]
    with told(lambda: lines[0], said.append):
        while said != ["1 of 3"]:
            time.sleep(0.01)
        time.sleep(0.1)
        lines.pop(0)
        while len(said) < 2:
            time.sleep(0.01)
    assert said == ["1 of 3", "2 of 3"]


def test_a_preparation_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove", reason="extra `prep`")
    from rntp_data_prep import PrepConfig, prepare

    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.02)
    sources = []
    for n in range(3):
        rows = [{"text": " ".join(f"w{n}x{k}x{i}" for i in range(100))} for k in range(250)]
        path = tmp_path / f"{n}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources.append(str(path))

    def slow(text: str) -> list[str]:
        time.sleep(0.0005)
        return text.split()

    said: list[str] = []
    facts = {"sources": sources, "output": tmp_path / "c", "tokenizer": "x", "workers": 1}
    prepare(PrepConfig.model_validate(facts), slow, "d" * 16, said.append)
    parts = [line for line in said if "sources are prepared" in line]
    assert any(line.startswith("1 of 3 sources are prepared, ") for line in parts), said
    assert any("00 pages read, " in line and ", eta " in line for line in parts), said
    assert "750 documents" in said[-1]
