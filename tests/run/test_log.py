import io
import json
import math
import os
import re
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest
from rich.console import Console

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.run.log import (
    RunLog,
    duration,
    read_metrics,
    read_rollouts,
    starts_of,
    step_line,
)
from rntp.run.rollout_files import rollout_files
from rntp.runtime.provenance import redact, secret_values

CANARY = "canary-4f1b9c77e0d2"
METRICS = {
    "step": 3,
    "reward/mean": -0.412,
    "reward/sem": 0.031,
    "gain/mean": -0.051,
    "nll/no_think": 3.102,
    "nll/think": 3.153,
    "thought/tokens_mean": 14.2,
    "thought/closed_frac": 0.31,
    "kl/sampler": 0.0004,
    "entropy/thought": 3.21,
    "grad_norm": 1.92,
    "lr": 1e-5,
    "tokens/tree": 7958,
    "time/step_s": 9.8,
}


def config(run_dir: Path) -> Config:
    return Config.parse(
        {
            "run": {"name": "trial", "steps": 24, "dir": str(run_dir)},
            "model": {"spec": "package:none", "device": "cpu"},
            "data": {"source": "shards", "context_tokens": 64, "docs_per_step": 2},
            "placement": {"positions_per_doc": 2},
            "thought": {"thoughts_per_position": 2, "thought_tokens": 4},
            "reward": {"horizon": 4},
        }
    )


def quiet(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def open_log(run_dir: Path, console: Console | None = None) -> RunLog:
    return RunLog(run_dir, config(run_dir), console=console or quiet())


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_step_line_reads_as_documented() -> None:
    assert step_line(METRICS, 24) == (
        "step  3/24  reward -0.412±0.031  gain -0.051  nll 3.102→3.153  "
        "think 14.2 tok 31% closed  kl 0.0004  H 3.21  grad 1.92  lr 1.0e-05  812 tok/s  9.8 s"
    )


def test_step_line_marks_a_skipped_step_and_leaves_out_what_is_missing() -> None:
    line = step_line({"step": 7, "skipped": 1, "grad_norm": math.nan}, 24)
    assert line == "step  7/24  SKIPPED: not finite, updates dropped: 1  grad nan"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.4, "9s"), (204, "3m24s"), (7500, "2h05m"), (3 * 86400 + 4 * 3600, "3d04h"), (0, "0s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_each_step_is_one_line_in_the_file_and_one_on_the_console(tmp_path: Path) -> None:
    console = quiet()
    with open_log(tmp_path, console) as log:
        log.begin(0, 24)
        log.step({**METRICS, "step": 1, "time/step_s": 10.0})
        # Flushed, so that a kill right now loses nothing.
        assert [row["step"] for row in read_metrics(tmp_path)] == [1]
        log.step({**METRICS, "step": 2, "time/step_s": 1000.0})
        log.step({**METRICS, "step": 3, "time/step_s": 12.0})
    lines = printed(console).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("step  1/24  reward -0.412±0.031")
    assert lines[2].endswith("eta 4m12s")  # median of 10, 1000, 12 s times 21 steps
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    assert read_metrics(tmp_path)[2] == {**METRICS, "step": 3, "time/step_s": 12.0}


def test_not_finite_metrics_are_null(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.step({"step": 1, "loss/total": math.nan, "grad_norm": math.inf, "skipped": 1})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss/total": None, "grad_norm": None, "skipped": 1}
    ]


def test_a_terminal_gets_a_bar_with_the_phase(tmp_path: Path) -> None:
    console = quiet(terminal=True)
    with open_log(tmp_path, console) as log:
        log.begin(2, 24)
        log.phase("rollout", 1, 4)
        log.step({**METRICS})
    out = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed(console))
    assert "rollout 1/4" in out or "2/24" in out
    assert "step  3/24" in out


def test_messages_have_their_utc_time_and_cannot_forge_entries(tmp_path: Path) -> None:
    console = quiet()
    with open_log(tmp_path, console) as log:
        log.message("first [bold]not markup[/bold]")
        log.message("evil\x1b[2J\r\n2026-01-01T00:00:00Z error: forged", "warning")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(stamp + r" first \[bold\]not markup\[/bold\]", lines[0])
    assert re.match(stamp + " warning: evil", lines[1])
    assert lines[2].startswith("    2026-01-01")
    assert "\x1b" not in printed(console)
    assert "\x1b" not in (tmp_path / "log.txt").read_text()


def test_rollouts_are_whole_files(tmp_path: Path) -> None:
    rows = [{"thought": "a\u2028b\ud83d", "gain": math.nan}, {"thought": "</script>", "gain": 0.5}]
    with open_log(tmp_path) as log:
        log.rollouts(1, iter(rows))
        log.sync()
    assert [p.name for p in (tmp_path / "rollouts").iterdir()] == ["step_00000001.jsonl"]
    assert read_rollouts(tmp_path, 1) == [{**rows[0], "gain": None}, rows[1]]
    assert read_rollouts(tmp_path, 2) == []


def test_rewind_is_exact(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir(parents=True)
    with open_log(tmp_path) as log:
        for step in (1, 2, 3, 4):
            log.step({"step": step, "x": step / 3})
            log.rollouts(step, [{"step": step}])
        log.sync()
        before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        with (tmp_path / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 5, "x": 1.66')
        for name in ("step_00000000.json", "step_00000002.json", "step_00000004.json", "note.json"):
            (tmp_path / "eval" / name).write_text("{}")
        log.rewind(2)
        assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:2])
        assert list(rollout_files(tmp_path)) == [1, 2]
        assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == [
            "note.json",
            "step_00000000.json",
            "step_00000002.json",
        ]
        log.step({"step": 3, "x": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:2]) + before[2]


def test_rewind_to_the_last_step_drops_only_the_half_written_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    with open_log(tmp_path) as log:
        log.rewind(2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_rewind_of_a_fresh_folder_does_nothing(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.rewind(0)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("damage", [b"oops", b'{"no": "step"}'])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 1}\n' + damage + b'\n{"step": 3}\n'
    path.write_bytes(content)
    with open_log(tmp_path) as log, pytest.raises(ConfigError, match=r"metrics\.jsonl"):
        log.rewind(1)
    assert path.read_bytes() == content


def test_manifest_keeps_its_first_content_and_counts_starts(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.write_manifest({"config_digest": "abc", "seed": 5, "segments": [{"step": 0}]})
        log.step({"step": 1})
        log.step({"step": 2})
    first = json.loads((tmp_path / "manifest.json").read_text())
    assert first["config_digest"] == "abc"
    assert first["seed"] == 5
    [start] = first["starts"]
    assert (start["from_step"], start["started"]) == (0, first["created"])
    assert first["segments"] == [{"step": 0}]
    assert set(first["versions"]) == {"rntp", "python", "torch", "transformers", "numpy"}
    assert first["command"] == sys.argv
    assert first["threads"] >= 1
    assert first["device"].startswith("cpu (")
    with open_log(tmp_path) as log:
        log.rewind(1)
        log.write_manifest(
            {"config_digest": "other", "seed": 6, "segments": [{"step": 0}, {"step": 1}]},
            {"changed": {"evaluation.docs": {"was": 3, "is": 6}}},
        )
    second = json.loads((tmp_path / "manifest.json").read_text())
    assert second["starts"][0] == start
    again = second["starts"][1]
    assert again["from_step"] == 1
    assert again["versions"] == first["versions"]
    assert again["changed"] == {"evaluation.docs": {"was": 3, "is": 6}}
    assert second["segments"] == [{"step": 0}, {"step": 1}]
    unchanged = {"starts", "segments"}
    assert {k: v for k, v in second.items() if k not in unchanged} == {
        k: v for k, v in first.items() if k not in unchanged
    }
    assert len(starts_of(second)) == 2


def test_starts_of_an_older_manifest() -> None:
    """They stood where the data's segments do now."""
    later = {"started": "then", "from_step": 4, "device": "cpu"}
    old = {"created": "before", "device": "cuda", "seed": 1, "segments": [later]}
    assert starts_of(old) == [{"started": "before", "from_step": 0, "device": "cuda"}, later]


def test_secrets_reach_no_file_and_no_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", CANARY)
    monkeypatch.setenv("some_password", "p@ss'wörd/9")
    monkeypatch.setattr(sys, "argv", ["rntp", "train", f"--set=a.b={CANARY}", "p@ss'wörd/9"])
    console = quiet()
    with open_log(tmp_path, console) as log:
        log.write_manifest({"url": f"https://user:{CANARY}@host", CANARY: ["p@ss'wörd/9"]})
        log.message(f"cannot reach {CANARY}", "error")
        log.step({"step": 1, "note": f"x{CANARY}x"})
        log.rollouts(1, [{"thought": CANARY, "rewards": {"p@ss'wörd/9": 1}}])
        log.write_manifest({})
    written = all_bytes(tmp_path).decode() + printed(console)
    assert CANARY not in written
    assert "p@ss" not in written
    assert written.count("[redacted]") >= 8
    assert read_metrics(tmp_path) == [{"step": 1, "note": "x[redacted]x"}]


def test_only_long_values_of_secret_names_are_secrets() -> None:
    environ = {
        "HF_TOKEN": "hf_0123456789",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": "/home/someone",
        "DB_PASSWORD": "hf_0123456789-and-more",
    }
    secrets = secret_values(environ)
    assert secrets == ("hf_0123456789-and-more", "hf_0123456789")
    assert redact({"a": ["hf_0123456789-and-more", 1, False]}, secrets) == {
        "a": ["[redacted]", 1, False]
    }


def test_importing_the_log_brings_no_heavy_package() -> None:
    code = "import rntp.run.log, sys; print({'wandb', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_full_disk_is_told_and_what_it_missed_follows(tmp_path: Path, monkeypatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    console = quiet()
    with open_log(tmp_path, console=console) as log:
        monkeypatch.setattr(os, "fsync", full)
        log.step({"step": 1})
        log.rollouts(1, [{"a": 1}])
        with pytest.raises(OSError, match="No space left"):
            log.sync()
        assert list((tmp_path / "rollouts").iterdir()) == []
        assert "No space left on device); 9 bytes wait in memory" in printed(console)
        monkeypatch.undo()
        log.rollouts(2, [{"a": 2}])
        log.sync()
    assert read_rollouts(tmp_path, 1) == [{"a": 1}]
    assert read_rollouts(tmp_path, 2) == [{"a": 2}]


def test_half_a_line_is_finished_when_there_is_room(tmp_path: Path, monkeypatch) -> None:
    """The disk takes some bytes of a line and then none."""
    room = [5]

    class Small(FileIO):
        def write(self, data: bytes) -> int:
            taken = min(len(data), room[0])
            room[0] -= taken
            if data and not taken:
                raise OSError(28, "No space left on device")
            return super().write(data[:taken])

    monkeypatch.setattr("rntp.run.log.FileIO", Small)
    with open_log(tmp_path) as log:
        log.step({"step": 1})
        assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"ste'
        log.step({"step": 2})
        room[0] = 1000
        log.step({"step": 3})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_not_everything_waits_for_a_disk(tmp_path: Path, monkeypatch) -> None:
    """Of the metrics; of thoughts see tests/run/test_rollout_writer.py."""

    class Full(FileIO):
        def write(self, data: bytes) -> int:
            raise OSError(30, "read-only")

    monkeypatch.setattr("rntp.run.log._MOST_WAITING", 100)
    monkeypatch.setattr("rntp.run.log.FileIO", Full)
    log = open_log(tmp_path)
    log.step({"step": 1, "note": "x" * 60})
    with pytest.raises(OSError, match="read-only"):
        log.step({"step": 2, "note": "x" * 60})


def test_the_line_of_a_made_corpus_tells_the_gain_of_each_class() -> None:
    gains = {"class/easy/gain": -0.012, "class/left_by_elimination/gain": 0.5}
    assert "gain -0.051  (easy -0.01, left by elimination +0.50)" in step_line(METRICS | gains, 24)
    assert "(" not in step_line(METRICS, 24)


def test_a_long_phase_says_when_it_will_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("rntp.run.log.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with open_log(tmp_path, console) as log:
        log.begin(0, 4)
        assert log._progress is not None
        task = log._progress.tasks[0]
        log.phase("evaluate", 0, 40)
        now[0] += 4
        log.phase("evaluate", 10, 40)
        assert task.description == "evaluate 10/40"
        now[0] += 4
        log.phase("evaluate", 20, 40)
        assert task.description == "evaluate 20/40, eta 8s"
        log.phase("score", 1, 40)  # the next one begins anew
        assert task.description == "score 1/40"
