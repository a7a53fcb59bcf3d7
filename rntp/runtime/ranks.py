"""The processes that train one run together: who does what, and what all of them agree on.

`torchrun` starts a process a device and calls them ranks. Between two agreements a rank works
alone; what one of them cannot do, because it was asked to stop or because it failed, all of them
learn at the next agreement, and all raise it. So they save together, and none waits for ever.

What a step exchanges are numbers: `agree` a few of them, `total` a vector of one length, whatever
the number of ranks, `gather_rows` the rows that only all of them together say something about.
Objects (`gather`, `decide`, `join`) are for starts, saves and failures.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rntp.config import Config
from rntp.errors import ConfigError, Preempted, RanksLost, RntpError
from rntp.runtime.packing import flat_sums, from_bytes, named_sums, padded, to_bytes

T = TypeVar("T")


SLOW_DISK = 20e6  # bytes a second that a shared file system gives a rank at the least
ROLL_CALL_S = 10.0  # seconds in which ranks that are there answer, once one was missed


def rank_share(items: Sequence[T], rank: int, size: int) -> Sequence[T]:
    """A rank's contiguous piece of a step; those of all ranks, in order, are the whole."""
    first, end = (len(items) * n // size for n in (rank, rank + 1))
    return items[first:end]


class Ranks:
    """The one process of a run on one device: it agrees with itself at once. See `Group`."""

    rank = 0
    size = 1
    mesh: DeviceMesh | None = None
    talk: dist.ProcessGroup | None = None  # what agreements go through, and who writes which shard

    def __init__(self) -> None:
        # Open while this rank waits for others: it is not the one that hangs.
        self.waiting: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()

    def apart(self) -> "Ranks":
        """The same ranks for another thread: what those agree on does not mix with these. All of
        them have to ask for it.
        """
        return self

    @property
    def alone(self) -> bool:
        return self.size == 1

    @property
    def on_this_machine(self) -> int:
        """Ranks that share its memory."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", self.size)) if self.size > 1 else 1

    @property
    def is_first(self) -> bool:
        """Rank 0: the one that speaks, and writes down what is not its own share."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's contiguous piece; those of all ranks, in order, are the whole."""
        return rank_share(items, self.rank, self.size)

    def gather(self, work: Callable[[], T], phase: str, num_bytes: int = 0) -> list[T]:
        """Return what `work` gives on every rank, in order; tensors on the CPU where there are
        many.

        phase: what goes on, for the message. num_bytes: what one rank reads from disks or writes to
        them meanwhile. Raises on every rank what it raised on one, and RanksLost if one does not
        come within `run.timeouts_s.ranks` and what a slow disk takes for the bytes.
        """
        return [work()]

    def agree(self, work: Callable[[], T], phase: str, num_bytes: int = 0) -> T:
        """Return what `work` gives on this rank, once it has gone well on every one; as
        `gather`."""
        return work()

    def decide(self, work: Callable[[], T], phase: str, num_bytes: int = 0) -> T:
        """Return what `work` gives on rank 0, which alone does it; as `gather`."""
        return work()

    def join(self, work: Callable[[], Sequence[T]], phase: str) -> list[T]:
        """The lists of all ranks as one, in order; as `gather`."""
        return [item for part in self.gather(work, phase) for item in part]

    def total(self, work: Callable[[], Mapping[str, Tensor]], phase: str) -> dict[str, Tensor]:
        """Add up what `work` gives on every rank, by name, in float64; as `gather`.

        Names and shapes are the same on all ranks. What is sent does not grow with their number.
        """
        mine = work()
        return named_sums(flat_sums(mine), mine)

    def gather_rows(
        self, work: Callable[[], Mapping[str, Tensor]], phase: str
    ) -> list[dict[str, Tensor]]:
        """What `work` gives on every rank, in order, on the CPU; as `gather`.

        Tensors have the same names, types and shapes on all ranks but for their numbers of rows,
        which come first.
        """
        return [{name: part.detach().cpu() for name, part in work().items()}]

    def to_first(self, flat: Tensor, longest: int) -> list[Tensor]:
        """What each rank has, in order, on rank 0; [] on the others. No agreement: call it where
        all ranks do.

        flat: [n], of one type. longest: the largest n, for which each of these is filled up.
        """
        return [padded(flat, longest)]


SINGLE_RANK = Ranks()


_ANY = 1 << 62  # more than any length


@dataclass(frozen=True)
class _Failure:
    """In place of a result: what a rank raised, in a form that the others can raise, too."""

    rank: int
    error: RntpError


class Group(Ranks):
    """Ranks that talk to each other. What they say here goes through gloo, on the CPU.

    mesh: all of them in one dimension, over the devices that hold the shards of the weights.
    timeout_s: longest that one waits for the others.
    """

    def __init__(self, mesh: DeviceMesh, timeout_s: float) -> None:
        super().__init__()
        self.mesh = mesh
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._timeout = timedelta(seconds=timeout_s)
        self.talk = dist.new_group(backend="gloo", timeout=self._timeout)
        # A group in which something failed says nothing any more.
        self._roll_call = dist.new_group(backend="gloo", timeout=self._timeout)

    def apart(self) -> Ranks:
        assert self.mesh is not None
        return Group(self.mesh, self._timeout.total_seconds())

    def gather(self, work: Callable[[], T], phase: str, num_bytes: int = 0) -> list[T]:
        mine = self._try(lambda: on_device(work(), torch.device("cpu")), phase)
        found: list[Any] = [None] * self.size
        with self._patience(phase, num_bytes):
            dist.all_gather_object(found, mine, group=self.talk)
        return self._raise_first(found)

    def agree(self, work: Callable[[], T], phase: str, num_bytes: int = 0) -> T:
        kept: list[T] = []
        if num_bytes:  # this takes longer than a group's own patience
            self.gather(lambda: kept.append(work()), phase, num_bytes)
            return kept[0]
        found = self._try(work, phase)
        self._meet(found, phase)
        assert not isinstance(found, _Failure)
        return found

    def total(self, work: Callable[[], Mapping[str, Tensor]], phase: str) -> dict[str, Tensor]:
        found = self._try(lambda: (mine := work(), flat_sums(mine)), phase)
        length = 0 if isinstance(found, _Failure) else len(found[1])
        shortest, longest = self._meet(found, phase, length)
        assert not isinstance(found, _Failure)
        mine, flat = found
        if shortest != longest:
            raise RanksLost(
                f"ranks have between {shortest} and {longest} numbers to add up in phase "
                f"{phase!r}; they must run the same config and the same version of rntp"
            )
        with self._lost(phase, self._timeout):
            dist.all_reduce(flat, group=self.talk)
        return named_sums(flat, mine)

    def gather_rows(
        self, work: Callable[[], Mapping[str, Tensor]], phase: str
    ) -> list[dict[str, Tensor]]:
        found = self._try(lambda: (mine := work(), to_bytes(mine)), phase)
        length = 0 if isinstance(found, _Failure) else len(found[1])
        _, longest = self._meet(found, phase, length)
        assert not isinstance(found, _Failure)
        mine, flat = found[0], padded(found[1], longest)
        parts = [torch.empty_like(flat) for _ in range(self.size)]
        with self._lost(phase, self._timeout):
            dist.all_gather(parts, flat, group=self.talk)
        return [from_bytes(data, mine) for data in parts]

    def to_first(self, flat: Tensor, longest: int) -> list[Tensor]:
        flat = padded(flat, longest)
        found = [torch.empty_like(flat) for _ in range(self.size)] if self.is_first else None
        with self._lost("record", self._timeout):
            dist.gather(flat, found, dst=0, group=self.talk)
        return found or []

    def decide(self, work: Callable[[], T], phase: str, num_bytes: int = 0) -> T:
        found: list[Any] = [self._try(work, phase) if self.is_first else None]
        with self._patience(phase, num_bytes):
            dist.broadcast_object_list(found, src=0, group=self.talk)
        return self._raise_first(found)[0]

    def _try(self, work: Callable[[], T], phase: str) -> T | _Failure:
        try:
            return work()
        except RntpError as error:
            return _Failure(self.rank, error)
        except Exception as error:
            what = f"rank {self.rank} failed in phase {phase!r}: {type(error).__name__}: {error}"
            traceback.print_exc()
            return _Failure(self.rank, RanksLost(f"{what}; its output says where"))

    def _raise_first(self, found: list[Any]) -> list[Any]:
        """The results, unless there is a failure: a real one counts for more than a request."""
        failures = [f for f in found if isinstance(f, _Failure)]
        failures.sort(key=lambda f: isinstance(f.error, Preempted))
        if failures:
            error = failures[0].error
            error.agreed = True
            raise error
        return found

    def _meet(self, found: object, phase: str, length: int = 0) -> tuple[int, int]:
        """Learn that all is well on every rank, and the least and the largest length.

        Raises on every rank what one of them could not do.
        """
        failed = isinstance(found, _Failure)
        # Who failed has no length of its own: it agrees with any.
        told = torch.tensor([failed, 0 if failed else length, -_ANY if failed else -length])
        with self.waiting(phase), self._lost(phase, self._timeout):
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.talk)
            if told[0]:
                errors: list[Any] = [None] * self.size
                dist.all_gather_object(errors, found if failed else None, group=self.talk)
        if told[0]:
            self._raise_first(errors)
        return -int(told[2]), int(told[1])

    @contextmanager
    def _patience(self, phase: str, num_bytes: int) -> Iterator[None]:
        """Wait until all are there, and say who is missing; then whatever is to be exchanged."""
        patience = self._timeout + timedelta(seconds=num_bytes / SLOW_DISK)
        with self.waiting(phase), self._lost(phase, patience, call=False):
            # Only this kind of barrier names the ranks that did not come.
            dist.monitored_barrier(self.talk, patience, wait_all_ranks=True)
            yield

    @contextmanager
    def _lost(self, phase: str, patience: timedelta, *, call: bool = True) -> Iterator[None]:
        """Say who did not come, where an exchange fails. call: whether it does not say so itself.

        A barrier before every exchange would name them, too, at a cost that grows with the ranks:
        so those that are left call the roll once one was missed.
        """
        try:
            yield
        except RuntimeError as error:
            missing: RuntimeError = error
            try:
                if call:
                    roll = timedelta(seconds=min(ROLL_CALL_S, patience.total_seconds()))
                    dist.monitored_barrier(self._roll_call, roll, wait_all_ranks=True)
            except RuntimeError as named:
                missing = named
            raise RanksLost(
                f"rank {self.rank} of {self.size} waited in phase {phase!r} for ranks that did not "
                f"come within {patience.total_seconds():g} s or went away: {missing}. Look at "
                "their output; if they were only slow, raise run.timeouts_s.ranks"
            ) from error


@contextmanager
def open_ranks(config: Config) -> Iterator[Ranks]:
    """The ranks of this run, by the environment that `torchrun` sets: one process without it.

    Raises ConfigError if the config does not go with their number.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_RANK
        return
    check_size(config, size)
    on_gpu = config.model.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(_local_device())
    timeout_s = config.run.timeouts_s.ranks
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout_s)
    )
    try:
        group = Group(init_device_mesh("cuda" if on_gpu else "cpu", (size,)), timeout_s)
        yield group
        group.agree(lambda: None, "end")
    except RntpError as error:
        if error.agreed:
            group.agree(lambda: None, "end")
        raise
    finally:
        dist.destroy_process_group()


def check_size(config: Config, size: int) -> None:
    """Raise ConfigError if so many ranks cannot share a step."""
    # What comes back may be missing: of a first step that was not finite, nothing does.
    docs = config.data.docs_per_step - config.data.replay_docs
    if docs < size:
        less = " less data.replay_docs" if config.data.replay_docs else ""
        raise ConfigError(
            f"data.docs_per_step{less} is {docs}, for {size} ranks, so some would have nothing to "
            f"do; raise it by {size - docs} or more, or start torchrun with --nproc-per-node {docs}"
        )


def on_device(found: T, device: torch.device) -> T:
    """The same with every tensor in it on a device: in data classes, lists, tuples and dicts."""
    moved: Any = found
    if isinstance(found, Tensor):
        moved = found.to(device)
    elif isinstance(found, list | tuple):
        moved = type(found)(on_device(item, device) for item in found)
    elif isinstance(found, dict):
        moved = {key: on_device(value, device) for key, value in found.items()}
    elif is_dataclass(found) and not isinstance(found, type):
        held = {f.name: getattr(found, f.name) for f in fields(found) if f.init}
        moved = replace(found, **{name: on_device(value, device) for name, value in held.items()})
    return moved


def _local_device() -> int:
    """The GPU of this rank. Raises ConfigError if the machine has fewer than ranks."""
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise ConfigError(
            f"rank {number} of this machine has no GPU of its own ({there} are there); start "
            f"torchrun with --nproc-per-node {there}, or set model.device to cpu"
        )
    return number
