"""Saving checkpoints, at once or while the training goes on.

Asynchronous: a thread copies the tensors to buffers in the host's memory, writes, hashes and
commits them. Training goes on at once, since sampling, forward and backward change nothing that is
saved; only the next update waits until the copies are there. There is one set of buffers, so a save
waits for the one before it. What the thread says to other ranks goes through a process group of its
own: messages of two threads in one group would meet in any order.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rntp.errors import CheckpointError
from rntp.run import checkpoint
from rntp.run.log import NoLog, RunLog
from rntp.runtime.ranks import Ranks

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
        log: RunLog | NoLog,
        saved: int,
    ) -> None:
        self.saved = saved
        self._folder, self._keep, self._log = folder, keep, log
        self._ranks = ranks.apart() if asynchronous else ranks
        self._asynchronous = asynchronous
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._thread: Thread | None = None
        self._copied = Event()
        self._copied.set()
        self._stall_s = 0.0  # of the save in flight
        self._report: Callable[[], None] = lambda: None
        self._failed: list[CheckpointError] = []  # in a row

    def prepare(self, tensors: checkpoint.Tensors) -> None:
        """Make the buffers before the first save has to."""
        if self._asynchronous:
            self._stage(tensors)

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
        self._copied.clear()
        self._thread = Thread(
            target=self._write_behind, args=(step, tensors, state, start), name="checkpoint"
        )
        self._thread.start()
        self._stall_s = time.perf_counter() - start

    def let_change(self) -> None:
        """Wait until what is being saved is copied: before it is changed."""
        start = time.perf_counter()
        self._copied.wait()
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

    def _write(self, step: int, tensors: checkpoint.Tensors, state: Mapping[str, Any]) -> Path:
        path = self._count(
            lambda: checkpoint.save(self._folder, step, tensors, state, self._keep, self._ranks)
        )
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
        try:
            try:
                staged = self._stage(tensors)
            finally:
                self._copied.set()
            path = self._write(step, staged, state)
        except CheckpointError as error:
            failure = error
            self._report = lambda: self._tell_failure(failure)
            return
        except BaseException as error:
            self._report = partial(_raise, error)
            return
        took = time.perf_counter() - start
        self._report = lambda: self._log.message(
            f"saved {path} (training stood still for {self._stall_s:.2f} s of {took:.2f} s)"
        )

    @torch.no_grad()
    def _stage(self, tensors: checkpoint.Tensors) -> checkpoint.Tensors:
        """Copies in the buffers, shards as shards."""
        staged: dict[str, dict[str, Tensor]] = {}
        for stem, group in tensors.items():
            staged[stem] = {}
            for name, tensor in group.items():
                local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                buffer = self._buffers.get((stem, name))
                if buffer is None:
                    buffer = torch.empty_like(local, device="cpu", pin_memory=local.is_cuda)
                    self._buffers[stem, name] = buffer
                buffer.copy_(local, non_blocking=True)
                staged[stem][name] = self._like(tensor, buffer)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return staged

    def _like(self, tensor: Tensor, buffer: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return buffer
        return DTensor.from_local(
            buffer,
            self._ranks.host_mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )


def _raise(error: BaseException) -> None:
    raise error
