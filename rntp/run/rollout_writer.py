"""The thoughts of each step, written down behind the training."""

import queue
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Lock, Thread

from rntp.run.rollout_files import FOLDER, old_files, pack, rollout_path
from rntp.runtime.faults import fault_point
from rntp.runtime.files import json_lines, write_bytes_atomic
from rntp.runtime.provenance import redact

PLAIN_STEPS = (
    64  # of the newest steps stay as they are, for whoever looks on; older ones are packed
)
PACK_EVERY = 16  # steps by their number, so that a resumed run leaves the same files
_MOST_STEPS = 4  # that wait for the thread; then training waits for it
_MOST_WAITING = 1 << 28  # bytes that wait in memory for a disk that takes nothing

_Job = tuple[int, Iterable[dict]]


class RolloutWriter:
    """Writes one rank's files of a run folder in a thread, in the order of the steps.

    A disk that is full for a while loses nothing: what it does not take waits in memory and is
    tried again with the next step and in `sync`. secrets: cut out of all that is written.
    """

    def __init__(
        self, run_dir: Path, secrets: Sequence[str] = (), rank: int = 0, size: int = 1
    ) -> None:
        self._dir, self._secrets, self._rank, self._size = run_dir, secrets, rank, size
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_MOST_STEPS)
        self._thread: Thread | None = None
        self._lock = Lock()  # around what waits for the disk
        self._waiting: dict[int, bytes] = {}
        self._refused: OSError | None = None  # and not told yet
        self._last_refusal = OSError("the disk takes nothing")
        self._failed: BaseException | None = None
        (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)

    def add(self, step: int, rows: Iterable[dict]) -> None:
        """Write the thoughts of one step, one object each; the file is whole or absent.

        rows: asked for in the thread. Raises what went wrong there: OSError once too much waits.
        """
        self._check()
        if self.waiting_bytes > _MOST_WAITING:
            raise self._last_refusal
        if self._thread is None:
            self._thread = Thread(target=self._run, name="rollouts", daemon=True)
            self._thread.start()
        self._jobs.put((step, rows))

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the disk has not taken."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    def refusal(self) -> OSError | None:
        """Why the disk did not take something since the last time one asked."""
        found, self._refused = self._refused, None
        return found

    def sync(self) -> None:
        """Wait until all thoughts are on the disk. Raises OSError when it does not take them."""
        self._jobs.join()
        self._check()
        with self._lock:
            self._write()

    def forget(self) -> None:
        """Drop what has not been written."""
        self._jobs.join()
        with self._lock:
            self._waiting.clear()

    def close(self) -> None:
        """Write what can be written, and end the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        try:
            self.sync()
        except OSError as error:
            self._refused = error

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._take(*job)
            except BaseException as error:  # for the thread that trains
                self._failed = error
            self._jobs.task_done()
        self._jobs.task_done()

    def _take(self, step: int, rows: Iterable[dict]) -> None:
        data = json_lines(redact(row, self._secrets) for row in rows)
        with self._lock:
            self._waiting[step] = data
            try:
                self._write()
                if step % PACK_EVERY == 0:
                    self._pack(step - PLAIN_STEPS)
            except OSError as error:
                self._refused = self._last_refusal = error

    def _write(self) -> None:
        for step, data in list(self._waiting.items()):
            fault_point("rollouts.before")
            write_bytes_atomic(rollout_path(self._dir, step, self._rank, self._size), data)
            del self._waiting[step]

    def _pack(self, before: int) -> None:
        for path in old_files(self._dir, before, self._rank, self._size):
            pack(path)

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
