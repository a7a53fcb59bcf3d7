"""Any number of ranks and workers, any schedule: the same batches, every ordinal once."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from corpus import encode, write_corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rntp.data.manifest import Manifest
from rntp.data.reader import Reader
from rntp.data.stream import ContextStream
from rntp.errors import DataError
from rntp.runtime.ranks import rank_share
from rntp.types import Context

WORLDS = (8, 2, 16, 3, 1)


def stream(manifest: Manifest, seed: int = 3) -> ContextStream:
    return ContextStream(
        manifest,
        encode,
        seed=seed,
        context_tokens=24,
        min_document_tokens=16,
        heldout_fraction=0.0,
        split="train",
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_corpus(tmp_path_factory.mktemp("c") / "c", [20 + n % 30 for n in range(101)])


def facts(context: Context) -> tuple[int, str, int, tuple[int, ...]]:
    ids = tuple(context.token_ids.tolist())
    return context.ordinal, context.document_id, context.start, ids


def global_batch(
    manifest: Manifest, ordinals: list[int], world: int, workers: int, ahead: list[int]
) -> list[tuple]:
    """What `world` processes read together for one step, each with a reader of its own."""
    found = []
    for rank in range(world):
        reader = Reader(stream(Manifest.load(manifest.folder)), workers=workers)
        share = rank_share(ordinals, rank, world)
        found += [facts(c) for c in reader.take(share, ahead=rank_share(ahead, rank, world))]
        reader.close()
    return found


phases = st.lists(
    st.tuples(
        st.sampled_from(WORLDS),
        st.sampled_from((0, 1, 4)),
        st.integers(1, 6),  # steps
        st.booleans(),  # a last step was read, and the run killed before its update
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(phases=phases, docs_per_step=st.integers(1, 19))
def test_any_schedule_trains_every_ordinal_once(
    manifest: Manifest, phases: list[tuple[int, int, int, bool]], docs_per_step: int
) -> None:
    oracle = stream(manifest)
    trained: Counter[int] = Counter()
    first = 0
    for world, workers, steps, killed in [*phases, (1, 0, 40, False)]:
        for step in range(steps + killed):
            ordinals = range(first, first + docs_per_step)
            ahead = [n + docs_per_step for n in ordinals]
            batch = global_batch(manifest, ordinals, world, workers, ahead)
            assert batch == [facts(oracle[n]) for n in ordinals]
            if step < steps:  # what a checkpoint keeps is the first ordinal of the next step
                trained.update(ordinals)
                first += docs_per_step
    assert set(trained.values()) == {1}
    assert set(trained) == set(range(first))


def test_two_passes_over_the_worlds_of_the_specification(manifest: Manifest) -> None:
    oracle = stream(manifest)
    visits: Counter[tuple[str, int]] = Counter()
    steps = -(-2 * manifest.num_docs // 13)
    for step in range(steps):
        world = WORLDS[step * len(WORLDS) // steps]
        ordinals = range(13 * step, 13 * step + 13)
        batch = global_batch(manifest, ordinals, world, (0, 1, 4)[step % 3], [])
        assert batch == [facts(oracle[n]) for n in ordinals]
        visits.update((oracle[n].document_id, oracle[n].visit) for n in ordinals)
    two_passes = Counter(v for _, v in visits)
    assert (two_passes[0], two_passes[1]) == (manifest.num_docs, manifest.num_docs)
    assert set(visits.values()) == {1}


@pytest.mark.slow
def test_worker_processes_give_the_same_and_a_killed_one_is_replaced(manifest: Manifest) -> None:
    reader = Reader(stream(manifest), workers=2, kind="process")
    try:
        wanted = range(20)
        first = reader.take(wanted)
        assert [facts(c) for c in first] == [facts(stream(manifest)[n]) for n in wanted]
        for restarts in (1, 2):
            wanted = range(20 * restarts, 20 * restarts + 20)
            for process in list(reader._pool._processes.values()):  # type: ignore[union-attr]
                os.kill(process.pid, signal.SIGKILL)
            assert [facts(c) for c in reader.take(wanted)] == [
                facts(stream(manifest)[n]) for n in wanted
            ]
            assert reader.restarts == restarts
    finally:
        reader.close()
    left = {name for name in os.listdir("/dev/shm") if name.startswith("torch_")}
    assert not {name for name in left if f"_{os.getpid()}_" in name}


class Hanging:
    """A stream whose reads never come back."""

    num_documents, num_too_short = 10, 0

    def __init__(self, event) -> None:
        self.event = event

    def read(self, ordinal: int):
        self.event.wait(30)
        raise AssertionError("nobody waits for this")


def test_workers_that_hang_are_given_up() -> None:
    import threading

    event = threading.Event()
    reader = Reader(Hanging(event), workers=1, deadline_s=0.05)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"ended or hung 4 times at ordinal 0 .*data\.workers"):
        reader.take([0])
    event.set()


def test_only_this_step_and_the_next_are_held(manifest: Manifest) -> None:
    reader = Reader(stream(manifest), workers=2)
    for step in range(5):
        first = step * 10
        reader.take(range(first, first + 10), ahead=range(first + 10, first + 20))
        assert set(reader._pending) == set(range(first + 10, first + 20))
    reader.take([90])
    assert set(reader._pending) == set()
    reader.close()


@pytest.mark.slow
def test_damage_found_by_workers_reaches_the_budget(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", [50] * 20)
    shard = tmp_path / "c" / "shard-00000.tar"
    shard.write_bytes(shard.read_bytes().replace(b"w7003", b"w7004"))
    for kind in ("thread", "process"):
        reader = Reader(
            ContextStream(
                corpus,
                encode,
                seed=3,
                context_tokens=24,
                min_document_tokens=16,
                heldout_fraction=0.0,
                split="train",
                max_damaged=0.05,
            ),
            workers=2,
            kind=kind,  # type: ignore[arg-type]
        )
        reader.take(range(20))
        assert [damage.document_id for _, damage in reader.damaged] == ["doc-7"]
        reader.close()
        strict = Reader(stream(corpus), workers=2, kind=kind)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="1 documents"):
            strict.take(range(20))
        strict.close()
