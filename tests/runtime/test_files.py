import json
import math
import os
from pathlib import Path

import pytest

from rntp.runtime.files import (
    complete_lines,
    json_line,
    read_json_lines,
    write_bytes_atomic,
    write_json,
    write_text_atomic,
)


def test_write_json_round_trips_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": [1, 2.5, "Käse"], "y": None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": [1, 2.5, "Käse"], "y": None}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": math.nan, "b": [math.inf, (-math.inf, 1.0)]})
    assert json.loads(path.read_bytes()) == {"a": None, "b": [None, [None, 1.0]]}
    assert b"NaN" not in path.read_bytes()
    assert b"Infinity" not in path.read_bytes()


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": {1, 2}})
    assert json.loads(path.read_bytes()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_rename_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_bytes_atomic(tmp_path / "nowhere" / "a", b"x")


def test_a_lone_surrogate_survives_as_an_escape() -> None:
    line = json_line({"text": "a\ud800b"})
    assert line == b'{"text": "a\\ud800b"}\n'
    assert json.loads(line) == {"text": "a\ud800b"}


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one\u2028two\x85three\r\nfour"}, {"text": ""}]
    path.write_bytes(b"".join(json_line(row) for row in rows))
    assert read_json_lines(path) == rows


@pytest.mark.parametrize("tail", [b'{"step": 3', b'{"step": 3}', b"\x00\x00\x00"])
def test_a_half_written_last_line_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    assert complete_lines(path) == [b'{"step": 1}\n', b'{"step": 2}\n']


@pytest.mark.parametrize("damage", [b"{broken}", b"[1]", b"\xff\xfe"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2"):
        read_json_lines(path)
