"""Saving checkpoints, at once or while the training goes on.

Asynchronous: a thread copies the tensors to buffers in the host's memory, writes, hashes and
commits them. Training goes on at once, since sampling, forward and backward change nothing that is
saved; only the next update waits until the copies are there. There is one set of buffers, so a save
waits for the one before it. What the thread says to other ranks goes through a process group of its
own: messages of two threads in one group would meet in any order.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rntp import checkpoint
from rntp.ranks import Ranks


class Say(Protocol):
    def __call__(self, text: str, level: Any = "info") -> None: ...


class Saver:
    """Writes the checkpoints of one run. `saved` is the step of the newest that is on the disk."""

    def __init__(
        self, folder: Path, keep: int, ranks: Ranks, *, asynchronous: bool, say: Say, saved: int
    ) -> None:
        self.saved = saved
        self._folder, self._keep, self._say = folder, keep, say
        self._ranks = ranks.apart() if asynchronous else ranks
        self._asynchronous = asynchronous
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self._thread: Thread | None = None
        self._copied = Event()
        self._copied.set()
        self._stall_s = 0.0  # of the save in flight
        self._report: Callable[[], None] = lambda: None

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
        """Save a step; see `rntp.checkpoint.save`. wait: until it is on the disk, and raise
        CheckpointError if it cannot be; an asynchronous save that fails is only told, and the
        tensors must not change before `let_change`.
        """
        start = time.perf_counter()
        self.wait()
        if wait or not self._asynchronous:
            path = self._write(step, tensors, state)
            stall = time.perf_counter() - start
            self._say(f"saved {path} (training stood still for {stall:.2f} s)")
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
        path = checkpoint.save(self._folder, step, tensors, state, self._keep, self._ranks)
        self.saved = step
        return path

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
        except Exception as error:
            text = f"the checkpoint of step {step} is lost, and training goes on without: {error}"
            self._report = lambda: self._say(text, "error")
            return
        took = time.perf_counter() - start
        self._report = lambda: self._say(
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
