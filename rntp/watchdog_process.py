"""What `rntp.watchdog` starts: a small program of its own, from the standard library alone.

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
    silent_s, last, pending = 0.0, {"phase": "start", "step": 0, "ordinal": 0}, b""
    before = time.monotonic()
    while True:
        ready = select.select([0], [], [], poll_s)[0]
        # Capped: where both processes were stopped for an hour, that hour is not silence.
        now = time.monotonic()
        silent_s += min(now - before, 2 * poll_s)
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


def _write(path: str, beat: dict) -> None:
    """A full disk must not end the watch, so the file may be older than the last sign of life."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(beat) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        print(f"rntp: {path} cannot be written: {error}", file=sys.stderr, flush=True)


def _end(watched: int, facts: dict, last: dict) -> None:
    os.kill(watched, facts["signal"])
    size = -1
    for _ in range(50):  # until the stacks are written, 5 s at most
        time.sleep(0.1)
        grown = os.path.getsize(facts["stacks"])
        if grown == size > 0:
            break
        size = grown
    what = (
        f"rank {facts['rank']} hangs in phase {last['phase']} of step {last['step']} (ordinal "
        f"{last['ordinal']}): no sign of life for {facts['timeout_s']:g} s"
    )
    print(
        f"rntp: {what}. Its stacks are in {facts['stacks']}. The run is ended; the same command "
        "resumes it. If the phase may take that long, raise run.hang_timeout_s",
        file=sys.stderr,
        flush=True,
    )
    with open(facts["stacks"], "a", encoding="utf-8") as file:
        file.write(f"\n{what}\n")
    os.kill(watched, signal.SIGKILL)


if __name__ == "__main__":
    main()
