"""One rank of the bench: it exchanges made-up steps both ways and tells what that took."""

import pickle
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rntp.bench.exchange import made_up
from rntp.objective.quantities import Counts
from rntp.runtime.ranks import Group, Ranks, rank_share
from rntp.training.step_metrics import WholeStep
from rntp.training.step_stats import StepStats
from rntp.training.whole_step import sample_and_count

TIMEOUT_S = 600.0


class FirstRanks(Group):
    """The first so many of all processes, as a run of that many ranks: all of them make it."""

    def __init__(self, size: int) -> None:
        Ranks.__init__(self)
        self.rank, self.size = dist.get_rank(), size
        self._timeout = timedelta(seconds=TIMEOUT_S)
        ranks = list(range(size))
        self.talk = dist.new_group(ranks, timeout=self._timeout, backend="gloo")
        self._roll_call = dist.new_group(ranks, timeout=self._timeout, backend="gloo")


@dataclass
class Taken:
    """Bytes that this rank has taken in from the others, by the arithmetic of the collectives."""

    bytes: float = 0.0


@contextmanager
def counted(size: int) -> Iterator[Taken]:
    """Count what passes through the collectives that a step uses, inside."""
    taken, others = Taken(), size - 1
    originals = {name: getattr(dist, name) for name in _COUNTED}

    def count(name: str) -> Callable[..., Any]:
        def counted_one(*args: Any, **named: Any) -> Any:
            taken.bytes += _COUNTED[name](args, others, size)
            return originals[name](*args, **named)

        return counted_one

    for name in originals:
        setattr(dist, name, count(name))
    try:
        yield taken
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def _reduced(args: Sequence[Any], others: int, size: int) -> float:
    return 2 * args[0].numel() * args[0].element_size() * others / size  # a ring's


def _gathered(args: Sequence[Any], others: int, size: int) -> float:
    return others * args[1].numel() * args[1].element_size()


def _at_first(args: Sequence[Any], others: int, size: int) -> float:
    return others * args[0].numel() * args[0].element_size() if args[1] else 0


def _objects(args: Sequence[Any], others: int, size: int) -> float:
    # All ranks' are as large: the largest decides.
    return others * len(pickle.dumps(args[1]))


_COUNTED: dict[str, Callable[[Sequence[Any], int, int], float]] = {
    "all_reduce": _reduced,
    "all_gather": _gathered,
    "gather": _at_first,
    "all_gather_object": _objects,
}


def packed(ranks: Ranks, stats: StepStats) -> None:
    """Exchange what the trainer has ranks exchange in a step of one epoch."""
    settings = stats.config
    sample_and_count(lambda: list(stats.rollouts), settings, ranks)
    ranks.agree(lambda: None, "backward")
    ranks.total(lambda: {"": torch.tensor(not stats.take_finite())}, "update")
    whole = WholeStep.exchange(stats, ranks, 0, {"stop": 0, "damaged": 0})
    whole.metrics()


def objects(ranks: Ranks, stats: StepStats) -> None:
    """Exchange the same as objects, each rank's to all: as one writes it first."""
    settings = stats.config
    ranks.gather(lambda: None, "rollout")
    ranks.gather(lambda: Counts.of(stats.rollouts, settings.reward.horizon), "count")
    ranks.gather(lambda: None, "backward")
    ranks.gather(stats.take_finite, "update")
    parts = ranks.gather(lambda: stats, "record")
    whole = StepStats(settings, [r for part in parts for r in part.rollouts], stats.counts)
    for part in parts:
        whole.outputs += part.outputs
        whole.rewarded_parts += part.rewarded_parts
        whole.others += part.others
        whole.losses += part.losses
    alone = Ranks()
    WholeStep.exchange(whole, alone, 0, {"stop": 0, "damaged": 0}).metrics()
    ranks.gather(lambda: None, "record")
    ranks.gather(lambda: None, "step")


WAYS: dict[str, Callable[[Ranks, StepStats], None]] = {"objects": objects, "packed": packed}


def measure(sizes: Sequence[int], thoughts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """On every process: exchange each step on each number of ranks; what rank 0 gives counts."""
    found = []
    for size in sizes:
        ranks = Ranks() if size == 1 else FirstRanks(size)
        for number in thoughts:
            if dist.get_rank() < size:
                found.append(_point(ranks, number, repeats))
            dist.barrier()  # the others wait, so that they take no time from these
    return found


def _point(ranks: Ranks, thoughts: int, repeats: int) -> dict[str, Any]:
    pages = max(ranks.size, thoughts // (made_up.POSITIONS * made_up.THOUGHTS))
    settings = made_up.config(pages)
    sampled = made_up.rollouts(rank_share(range(pages), ranks.rank, ranks.size))
    each = made_up.POSITIONS * made_up.THOUGHTS * pages
    counts = Counts(
        thought=each * made_up.TOKENS,
        continuation=each * made_up.HORIZON,
        context=pages * (made_up.CONTEXT - 1),
        thoughts=each,
        counted_tokens=each * made_up.TOKENS,
        counted_thoughts=each,
    )
    stats = made_up.step_stats(settings, sampled, counts)
    point: dict[str, Any] = {"ranks": ranks.size, "thoughts": each}
    for name, way in WAYS.items():
        seconds = []
        for _ in range(1 + repeats):
            ranks.agree(lambda: None, "bench")
            start = time.perf_counter()
            way(ranks, stats)
            seconds.append(time.perf_counter() - start)
        with counted(ranks.size) if ranks.size > 1 else nullcontext(Taken()) as taken:
            way(ranks, stats)
        slowest = max(ranks.gather(lambda: statistics.median(seconds[1:]), "bench"))  # noqa: B023
        everywhere = ranks.gather(lambda: taken.bytes, "bench")
        point[name] = {
            "seconds": slowest,
            "bytes_rank_0": everywhere[0],
            "bytes": max(everywhere[1:], default=everywhere[0]),
        }
    return point
