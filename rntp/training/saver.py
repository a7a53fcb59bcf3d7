"""Saving checkpoints, at once or while the training goes on.

Asynchronous: a thread writes, hashes and commits the tensors themselves, and training goes on at
once; what is not written when the next update comes is copied then, or waited for (see
`rntp.training.snapshot`). A save waits for the one before it. What the thread says to other ranks
goes through a process group of its own: messages of two threads in one group would meet in any
order.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from rntp.errors import CheckpointError
from rntp.run import checkpoint
from rntp.run.checkpoint_shards import Source
from rntp.run.log import NoLog, RunLog
from rntp.runtime.ranks import Ranks
from rntp.training.snapshot import Snapshot

T = TypeVar("T")

FAILED_SAVES = 3  # in a row: weights that cannot be kept are not worth training any longer


class Saver:
    """Writes the checkpoints of one run. `saved` is the step of the newest that is on the disk.

    A disk that does not take a checkpoint is no reason to lose the weights in memory: until
    FAILED_SAVES in a row, training goes on, loudly.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        ranks: Ranks,
        *,
        asynchronous: bool,
        copies_bytes: float | None = None,
        log: RunLog | NoLog,
        saved: int,
    ) -> None:
        self.saved = saved
        self._folder, self._keep, self._log = folder, keep, log
        self._ranks = ranks.apart() if asynchronous else ranks
        self._asynchronous, self._copies_bytes = asynchronous, copies_bytes
        self._snapshot = Snapshot({})
        self._thread: Thread | None = None
        self._stall_s = 0.0  # of the save in flight
        self._report: Callable[[], None] = lambda: None
        self._failed: list[CheckpointError] = []  # in a row

    def save(
        self,
        step: int,
        tensors: checkpoint.Tensors,
        state: Mapping[str, Any],
        *,
        wait: bool = False,
    ) -> None:
        """Save a step; see `rntp.run.checkpoint.save`.

        wait: until it is on the disk; otherwise the tensors must not change before `let_change`.
        Raises CheckpointError if it cannot be and either `wait` or FAILED_SAVES say so; all ranks
        together.
        """
        start = time.perf_counter()
        self.wait()
        if len(self._failed) >= FAILED_SAVES:  # here, since here all ranks know of the last one
            raise self._failed[-1]
        behind = self._asynchronous and not wait
        try:
            self._count(lambda: self._ranks.agree(lambda: self._write_record(step), "save"))
            if not behind:
                path = self._write(step, tensors, state)
        except CheckpointError as error:
            if wait or len(self._failed) >= FAILED_SAVES:
                raise
            self._tell_failure(error)
            return
        if not behind:
            stall = time.perf_counter() - start
            self._log.message(f"saved {path} (training stood still for {stall:.2f} s)")
            return
        self._snapshot = Snapshot(tensors, self._copies_bytes)
        self._thread = Thread(
            target=self._write_behind, args=(step, tensors, state, start), name="checkpoint"
        )
        self._thread.start()
        self._stall_s = time.perf_counter() - start

    def let_change(self) -> None:
        """Copy what is being saved, or wait until it is: before it is changed."""
        start = time.perf_counter()
        self._snapshot.let_change()
        self._stall_s += time.perf_counter() - start

    def poll(self) -> None:
        """Tell how a save went that has come to its end."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written, and tell how it went."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._report()

    def _write(
        self,
        step: int,
        tensors: checkpoint.Tensors,
        state: Mapping[str, Any],
        *more: Callable[[str], Source],
    ) -> Path:
        where = self._folder, step, tensors, state, self._keep, self._ranks
        path = self._count(lambda: checkpoint.save(*where, *more))
        self._failed.clear()
        self.saved = step
        return path

    def _count(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except CheckpointError as error:
            self._failed.append(error)
            raise

    def _write_record(self, step: int) -> None:
        """A resume cuts the record to the checkpoint, so it has to reach as far."""
        try:
            self._log.sync()
        except OSError as error:
            raise CheckpointError(
                f"the record up to step {step} could not be written: {error}. Free some space and "
                "start again with the same command"
            ) from error

    def _tell_failure(self, error: Exception) -> None:
        self._log.message(
            f"NOT SAVED: {error}. Training goes on until the next checkpoint is due; "
            f"{FAILED_SAVES} failures in a row end the run",
            "error",
        )

    def _write_behind(
        self,
        step: int,
        tensors: checkpoint.Tensors,
        state: Mapping[str, Any],
        start: float,
    ) -> None:
        """In the thread, which leaves the telling to the one that trains."""
        snapshot = self._snapshot
        try:
            path = self._write(step, tensors, state, snapshot.of)
        except CheckpointError as error:
            failure = error
            self._report = lambda: self._tell_failure(failure)
            return
        except BaseException as error:
            self._report = partial(_raise, error)
            return
        finally:
            snapshot.close()
        took = time.perf_counter() - start
        self._report = lambda: self._log.message(
            f"saved {path} (training stood still for {self._stall_s:.2f} s of {took:.2f} s)"
        )


def _raise(error: BaseException) -> None:
    raise error
