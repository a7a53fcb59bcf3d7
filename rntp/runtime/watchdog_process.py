"""What `rntp.runtime.watchdog` starts: a small program of its own, from the standard library alone.

It reads signs of life from its standard input until that closes, which is when the process it
watches has ended, however that came about.
"""

import json
import os
import select
import signal
import sys
import time


def main() -> None:
    facts = json.loads(sys.argv[1])
    watched = os.getppid()
    # They come to the whole group of processes, and the watched one may need a while to save.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    poll_s = min(1.0, facts["timeout_s"] / 10)
    last = {"phase": "start", "step": 0, "ordinal": 0, "waits": False}
    silent_s, pending, noticed = 0.0, b"", set()
    before = time.monotonic()
    while True:
        ready = select.select([0], [], [], poll_s)[0]
        # Capped: where both processes were stopped for an hour, that hour is not silence.
        now = time.monotonic()
        silent_s = 0.0 if last["waits"] else silent_s + min(now - before, 2 * poll_s)
        before = now
        if ready:
            read = os.read(0, 1 << 16)
            if not read:
                return
            silent_s = 0.0
            *lines, pending = (pending + read).split(b"\n")
            if lines:
                last = json.loads(lines[-1])
                _write(facts["heartbeat"], {"rank": facts["rank"], **last})
        if silent_s >= facts["timeout_s"]:
            _end(watched, facts, last)
            return
        if silent_s >= facts["notice_s"] and last["phase"] not in noticed:
            noticed.add(last["phase"])
            what = _stacks(watched, facts, f"may hang {_where(facts, last, facts['notice_s'])}")
            _say(
                f"{what}. Its stacks are in {facts['stacks']}; it is ended after "
                f"{facts['timeout_s']:g} s (run.timeouts_s.hang)"
            )


def _write(path: str, beat: dict) -> None:
    """A full disk must not end the watch, so the file may be older than the last sign of life."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(beat) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        _say(f"{path} cannot be written: {error}")


def _end(watched: int, facts: dict, last: dict) -> None:
    what = _stacks(watched, facts, f"hangs {_where(facts, last, facts['timeout_s'])}")
    _say(
        f"{what}. Its stacks are in {facts['stacks']}. The run is ended; the same command resumes "
        "it. If the phase may take that long, raise run.timeouts_s.hang"
    )
    os.kill(watched, signal.SIGKILL)


def _where(facts: dict, last: dict, silent_s: float) -> str:
    return (
        f"in phase {last['phase']} of step {last['step']} (ordinal {last['ordinal']}): no sign of "
        f"life for {silent_s:g} s"
    )


def _stacks(watched: int, facts: dict, what: str) -> str:
    """Have the stacks written and what the rank does below them, and give that back."""
    what = f"rank {facts['rank']} {what}"
    before = size = os.path.getsize(facts["stacks"])
    os.kill(watched, facts["signal"])
    for _ in range(50):  # until they are there, 5 s at most
        time.sleep(0.1)
        grown = os.path.getsize(facts["stacks"])
        if grown == size > before:
            break
        size = grown
    with open(facts["stacks"], "a", encoding="utf-8") as file:
        file.write(f"\n{what}\n\n")
    return what


def _say(text: str) -> None:
    print(f"rntp: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
