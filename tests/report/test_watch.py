"""`rntp watch`: what a frame says, that files are read as they grow, that no text of a page does
anything to the terminal."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_run import fake_run
from rich.console import Console

from rntp.cli import main
from rntp.errors import ConfigError
from rntp.report.watch_frame import frame, one_line, sparkline
from rntp.report.watched import Watched, last_rows
from rntp.runtime.files import json_lines, write_bytes_atomic, write_json

HOSTILE = "[bold red]x[/] \x1b[31mred\x1b]0;title\x07 \u202egnihton \ud800 {{7*7}} <script>"
GIANT = HOSTILE + "w" * 10**6


def shown(watched: Watched, width: int = 100) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    console.print(frame(watched, console))
    return out.getvalue()


def looked_at(run: Path) -> Watched:
    watched = Watched(run)
    watched.refresh()
    return watched


def row(step: int, **more: object) -> dict:
    return {"step": step, "gain/mean": step / 10, "time/step_s": 3.0, "skipped": 0, **more}


def test_a_frame_of_a_finished_run(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "checkpoints" / "step_00000020").mkdir(parents=True)
    (run / "checkpoints" / "step_00000020" / "COMMIT.json").write_text("{}")
    (run / "checkpoints" / "step_00000024").mkdir()  # still being written
    watched = looked_at(run)
    text = shown(watched)
    assert watched.finished
    assert "demo  step 24 of 24  " in text
    assert "100%  all steps done" in text
    assert "finished" in text
    assert "gain +0.020, 95 % −0.030 to +0.070, after step 24; before training −0.220" in text
    assert "rollout 6.10 (6" in text
    assert "saved     step 20, " in text
    assert "skipped   1 steps" in text
    assert "alarms    none" in text
    last = [json.loads(line) for line in (run / "rollouts/step_00000024.jsonl").open()][-2:]
    for thought in last:
        assert f"{thought['gain']:+.3f} nats".replace("-", "−") in text
    assert "step 24, local-history/harbour, token 74" in text
    assert "no cloth was" not in text.partition("│")[0][-40:]
    assert all(len(line) <= 100 for line in text.splitlines())


def test_files_are_read_as_they_grow(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", steps=24)
    metrics = run / "metrics.jsonl"
    write_bytes_atomic(metrics, json_lines([row(1), row(2)]))
    watched = looked_at(run)
    assert (watched.done, watched.wanted, watched.eta_s) == (2, 24, 66.0)
    assert "eta 1m06s" in shown(watched)
    reads = watched._metrics._offset
    with metrics.open("ab") as file:
        file.write(json_lines([row(3, skipped=1)]) + b'{"step": 4, "gai')
    watched.refresh()
    assert (watched.done, watched.skipped, watched.finished) == (3, 1, False)
    assert watched._metrics._offset > reads
    assert watched.values("gain/mean") == [0.1, 0.2, 0.3]
    # A resume forgets a step.
    write_bytes_atomic(metrics, json_lines([row(1)]))
    watched.refresh()
    assert (watched.done, watched.skipped) == (1, 0)
    (run / "log.txt").write_text(
        "2026-01-01T10:20:30Z step 1\n2026-01-01T10:21:30Z warning: the loss jumped\n"
    )
    watched.refresh()
    assert "alarm     10:21 warning: the loss jumped" in shown(watched)


def test_life_is_told_from_the_heartbeat(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    metrics = run / "metrics.jsonl"
    write_bytes_atomic(metrics, json_lines([row(1)]))
    (run / "heartbeat").mkdir()
    beat = {"phase": "forward", "step": 2, "time": time.time() - 3}
    write_json(run / "heartbeat" / "rank_0.json", beat)
    assert "forward, sign of life 3s ago" in shown(looked_at(run))
    write_json(run / "heartbeat" / "rank_0.json", {**beat, "time": time.time() - 300})
    assert "no sign of life for 5m00s; the same command resumes" in shown(looked_at(run))


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", evaluated=())
    (run / "metrics.jsonl").unlink()
    for path in (run / "rollouts").iterdir():
        path.unlink()
    text = shown(looked_at(run))
    assert "step 0 of 24" in text
    assert "eta ?" in text
    assert "no step is done yet" in text
    assert "no evaluation yet" in text
    assert "saved     nothing yet" in text


def test_texts_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", name=HOSTILE, thought=GIANT, steps=1)
    said = f"2026-01-01T10:21:30Z warning: {HOSTILE}\n"
    (run / "log.txt").write_text(said, "utf-8", "replace")
    for width in (40, 100):
        text = shown(looked_at(run), width)
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\u202e" not in text
        assert text.encode("utf-8")
        assert text.count("[bold red]x") >= 3  # name and two thoughts
        assert all(len(line) <= width for line in text.splitlines())
        assert len(text.splitlines()) < 40


def test_secrets_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_SECRET", "canary-77aa01c3f5d8")
    run = fake_run(tmp_path / "run", thought="say canary-77aa01c3f5d8")
    text = shown(looked_at(run))
    assert "canary" not in text
    assert "say [redacted]" in text


def test_sparklines() -> None:
    assert sparkline([0.0, 1.0, 2.0, 7.0], 10) == "▁▂▃█"
    assert sparkline([0.0, None, 7.0], 10) == "▁ █"
    assert sparkline([3.0, 3.0], 10) == "▄▄"
    assert sparkline([None, None], 10) == ""
    # 100 values in 10 characters, each the mean of ten.
    assert len(sparkline([float(n) for n in range(100)], 10)) == 10
    assert sparkline([0.0] * 10 + [7.0] * 10, 2) == "▁█"
    assert sparkline([0.0, 7.0], 5, "_#") == "_#"


def test_a_line_is_cut_to_its_columns() -> None:
    assert one_line("a\nb\t c", 20) == "a b c"
    assert one_line("abcdef", 4) == "abc…"
    # A wide character takes two columns.
    assert one_line("漢字漢字", 5) == "漢字…"


def test_the_last_rows_are_read_from_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json_lines({"n": n} for n in range(1000)) + b'{"n": 1')
    assert last_rows(path, 2) == [{"n": 998}, {"n": 999}]
    # Of lines longer than what is read at first, more is read.
    monkeypatch.setattr("rntp.report.watched._TAIL_BYTES", 3)
    assert last_rows(path, 2) == [{"n": 998}, {"n": 999}]
    assert len(last_rows(path, 5000)) == 1000
    assert last_rows(tmp_path / "none", 2) == []


def test_a_folder_that_is_no_run_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"no run folder: there is no such folder; name the"):
        Watched(tmp_path / "nowhere")
    with pytest.raises(SystemExit) as ended:
        main(["watch", str(tmp_path), "--once"])
    assert ended.value.code == 2
    assert (
        "it has no config.yaml; name the folder that `rntp train` writes" in capsys.readouterr().err
    )


def test_once_prints_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["watch", str(fake_run(tmp_path / "run")), "--once"])
    out = capsys.readouterr().out
    assert out.count("step 24 of 24") == 1
    assert "\x1b" not in out


@pytest.mark.slow
def test_ctrl_c_leaves_with_130_and_touches_nothing(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    write_bytes_atomic(run / "metrics.jsonl", json_lines([row(1), row(2)]))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    screen, inside = pty.openpty()
    command = [sys.executable, "-m", "rntp", "watch", str(run), "--every", "0.1"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    # A shell lets what runs behind it ignore Ctrl-C, and that is inherited.
    child = subprocess.Popen(
        command,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(inside)
    seen = b""
    end = time.monotonic() + 60
    while b"step 3" not in seen:
        assert time.monotonic() < end, seen
        if select.select([screen], [], [], 0.2)[0]:
            seen += os.read(screen, 1 << 16)
        if b"step 2" in seen and b"step 3" not in seen:
            with (run / "metrics.jsonl").open("ab") as file:
                file.write(json_lines([row(3)]))
            before[run / "metrics.jsonl"] = (run / "metrics.jsonl").stat().st_mtime_ns
            break
    while b"step 3" not in seen:
        assert time.monotonic() < end, seen
        if select.select([screen], [], [], 0.2)[0]:
            seen += os.read(screen, 1 << 16)
    child.send_signal(signal.SIGINT)
    while child.poll() is None:  # it waits for what it prints to be read
        assert time.monotonic() < end
        if select.select([screen], [], [], 0.05)[0]:
            try:
                seen += os.read(screen, 1 << 16)
            except OSError:
                break
    assert child.wait(20) == 130
    os.close(screen)
    assert b"\x1b[?1049l" in seen  # the terminal as it was
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
