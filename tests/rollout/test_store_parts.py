"""Parts of a store: files, seals, leases, packed rollouts."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rntp.errors import ConfigError
from rntp.rollout.interleaved import splice
from rntp.rollout.store import files as store_files
from rntp.rollout.store.files import Files, FolderFiles, UrlFiles, open_files
from rntp.rollout.store.layout import Head, Unit, get_facts, put_facts
from rntp.rollout.store.leases import BEATS, SLOW, Leases
from rntp.rollout.store.probe import check_store, probe_store
from rntp.rollout.store.records import pack_rollouts, unpack_rollouts
from rntp.rollout.store.sealed import KEY_IN, Refused, seal, unseal
from rntp.rollout.store.work import digest_of_work, pack_contexts, parts_of, unpack_contexts
from rntp.types import Context, Labels, Oracle, Rollout, Thought, ToolCall


class Careless(UrlFiles):
    """A store that takes no notice of conditions."""

    def _create(self, name: str, data: bytes) -> bool:
        self._write(name, data)
        return True


@pytest.fixture(params=["folder", "memory", "careless"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "folder":
        return FolderFiles(tmp_path)
    url = f"memory://{tmp_path.name}-{request.param}"
    return UrlFiles(url) if request.param == "memory" else Careless(url)


def test_of_two_the_first_wins_and_files_come_and_go(files: Files) -> None:
    assert files.get("a/b") is None
    assert not files.has("a/b")
    assert files.put_new("a/b", b"one")
    assert not files.put_new("a/b", b"two")
    assert files.get("a/b") == b"one"
    files.put("a/b", b"three")
    files.put("a/c", b"four")
    assert files.get("a/b") == b"three"
    assert files.names("a") == ["b", "c"]
    assert files.names("nothing") == []
    files.remove("a/b")
    files.remove("a/b")
    assert files.names("a") == ["c"]
    files.remove("a")
    assert files.names("a") == []


def test_a_store_says_whether_it_keeps_conditions(tmp_path: Path) -> None:
    assert UrlFiles(f"memory://{tmp_path.name}-x").conditional
    assert not Careless(f"memory://{tmp_path.name}-y").conditional
    with pytest.raises(ConfigError, match="a store is a folder or one of http"):
        open_files("ftp://host/store")
    assert isinstance(open_files("s3://bucket/x"), UrlFiles)


def test_many_threads_make_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for links in (True, False):
        if not links:  # as on file systems without hard links
            monkeypatch.setattr(store_files.os, "link", _no_link)
        won: list[int] = []
        files = FolderFiles(tmp_path)

        def race(n: int, name: str = f"race{links}", files: Files = files) -> None:
            if files.put_new(name, b"%d" % n * 1000):
                won.append(n)  # noqa: B023

        threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert files.get(f"race{links}") == b"%d" % won[0] * 1000
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def _no_link(*_: object) -> None:
    raise PermissionError("no hard links here")


def test_an_unmounted_folder_is_not_an_empty_one(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path / "away")
    for ask in (files.get, files.names, files.has):
        with pytest.raises(OSError, match="is not there"):
            ask("head.json")
    with pytest.raises(OSError, match="is not there"):
        files.put("head.json", b"")
    assert not (tmp_path / "away").exists()


def test_seals_tell_what_is_whole_and_where_it_belongs() -> None:
    sealed = seal("a", b"payload\nmore", b"")
    assert unseal("a", sealed, b"") == b"payload\nmore"
    for damaged in (sealed[:-1], sealed[:20], b"", sealed + b"x"):
        with pytest.raises(Refused, match="torn"):
            unseal("a", damaged, b"")
    for bit in range(0, len(sealed) * 8, 7):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        if bit // 8 in (70, 71):  # the place of the key's code, which nobody asks for
            continue
        with pytest.raises(Refused):
            unseal("a", bytes(flipped), b"")
    with pytest.raises(Refused, match="under this name"):
        unseal("b", sealed, b"")
    keyed = seal("a", b"payload", b"key")
    assert unseal("a", keyed, b"key") == b"payload"
    for data, key in ((sealed, b"key"), (keyed, b"other")):
        with pytest.raises(Refused, match="forged"):
            unseal("a", data, key)


def test_facts_and_heads(files: Files) -> None:
    head = Head("run", 3, "abc", {5: "x", 4: "y"}, 2)
    put_facts(files, "head.json", head.facts(), b"k")
    found = get_facts(files, "head.json", b"k")
    assert found is not None
    assert Head.of(found) == head
    assert head.units() == [Unit(4, "y", 0), Unit(4, "y", 1), Unit(5, "x", 0), Unit(5, "x", 1)]
    assert get_facts(files, "other", b"k") is None
    with pytest.raises(Refused, match="format 9"):
        Head.of({**found, "format": 9})
    with pytest.raises(Refused, match="forged"):
        get_facts(files, "head.json", b"other")


def contexts() -> list[Context]:
    labels = Labels("ab ", {"a": "easy"}, {1: Oracle("x", 0.5)})
    return [
        Context(7, "doc7", torch.arange(3), "Title é", 4, 1, labels),
        Context(1 << 40, "doc8", torch.arange(10, 30), replay_of=3),
        Context(9, "doc9", torch.arange(4), given=torch.tensor([False, True, True, False])),
    ]


def test_contexts_travel_as_they_are() -> None:
    payload = pack_contexts(contexts())
    assert payload == pack_contexts(contexts())
    for sent, come in zip(contexts(), unpack_contexts(payload), strict=True):
        assert torch.equal(come.token_ids, sent.token_ids)
        tensors = {name: getattr(sent, name) for name in ("token_ids", "left", "given")}
        assert replace(come, **tensors) == sent
        assert torch.equal(come.left, sent.left)
        assert torch.equal(come.given, sent.given)
    other = [replace(contexts()[0], visit=2), contexts()[1]]
    assert digest_of_work(pack_contexts(other)) != digest_of_work(payload)


@pytest.mark.parametrize(("number", "each"), [(7, 3), (8, 8), (1, 4), (24, 5)])
def test_parts_hold_every_context_once(number: int, each: int) -> None:
    parts = parts_of(number, each)
    assert [n for part in parts for n in part] == list(range(number))
    assert max(map(len, parts)) <= each
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def rollouts() -> tuple[list[Context], list[Rollout]]:
    bare = [Context(1, "a", torch.arange(20)), Context(2, "b", torch.arange(30))]
    call = ToolCall("search", "words", "result", withheld={"same page": 2})
    thoughts = [
        Thought(torch.tensor([5, 6]), torch.tensor([-0.1, -2.5]), True),
        Thought(
            torch.tensor([5, 6, 9]),
            torch.tensor([-0.1, 0.0, -1e-7]),
            False,
            torch.tensor([4]),
            torch.tensor([-3.0]),
            True,
            torch.tensor([False, True, True]),
            (call,),
        ),
    ]
    later = splice(bare[1], 8, torch.tensor([40, 41, 42]))
    nats = torch.tensor([0.25])
    return bare, [
        Rollout(bare[0], (4,), (tuple(thoughts),), nats, nats * 2, 3),
        Rollout(bare[1], (8,), (tuple(thoughts[::-1]),), nats, nats, 3),
        Rollout(later, (14,), (tuple(thoughts),), nats.double(), nats.double(), 3),
    ]


def same(one: object, other: object) -> bool:
    """Equal to the bit and in type, in all parts."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple | list):
        assert isinstance(other, tuple | list)
        return len(one) == len(other) and all(map(same, one, other))
    if hasattr(one, "__slots__"):
        return all(same(getattr(one, n), getattr(other, n)) for n in one.__slots__)
    return one == other


def test_rollouts_travel_to_the_bit() -> None:
    bare, sent = rollouts()
    sent[2] = replace(sent[2], entropy=torch.tensor([0.25]), nll=torch.tensor([0.5]))
    payload = pack_rollouts(sent, bare, {"version": 3, "who": "me"}, {"canary": torch.ones(2)})
    come, facts, tensors = unpack_rollouts(payload, bare)
    assert same(come, sent)
    assert not same(come, [replace(sent[0], positions=(5,)), *sent[1:]])
    assert facts["who"] == "me"
    assert torch.equal(tensors["canary"], torch.ones(2))
    with pytest.raises(Refused, match="malformed"):
        unpack_rollouts(payload, bare[:1])
    with pytest.raises(Refused, match="malformed"):
        unpack_rollouts(payload[:-4], bare)


class Clock:
    """A clock that shows its own time and goes as fast as all others."""

    def __init__(self, shows: float) -> None:
        self.now = shows

    def __call__(self) -> float:
        return self.now


UNIT = Unit(3, "w", 0)
OTHER = Unit(3, "w", 1)
SECONDS = 60.0


def lessee(files: Files, name: str, clock: Clock) -> Leases:
    return Leases(files, name, b"", SECONDS, clock)


def test_a_lease_runs_out_by_the_readers_clock(tmp_path: Path) -> None:
    """Clocks of the two differ by hours, which no one notices."""
    files = FolderFiles(tmp_path)
    early, late = Clock(0.0), Clock(90_000.0)
    one, two = lessee(files, "one", early), lessee(files, "two", late)
    one.beat("works", now=True)
    assert one.take([UNIT, OTHER]) == (UNIT, 1)
    assert two.take([UNIT, OTHER]) == (OTHER, 1)
    assert two.take([UNIT, OTHER]) is None
    for _ in range(BEATS):  # one lives: nothing is to be had
        for clock in (early, late):
            clock.now += SECONDS / BEATS + 1
        one.beat("works")
        assert two.take([UNIT]) is None
    late.now += SECONDS - 1
    assert two.take([UNIT]) is None
    late.now += 2
    assert two.take([UNIT]) == (UNIT, 2)
    assert one.take([UNIT]) is None  # that is two's now


def test_a_slow_sampler_loses_its_lease_although_it_lives(tmp_path: Path) -> None:
    files, clock = FolderFiles(tmp_path), Clock(5.0)
    slow, quick = lessee(files, "slow", clock), lessee(files, "quick", clock)
    assert slow.take([UNIT]) == (UNIT, 1)
    taken = []
    for _ in range(SLOW * BEATS + 2):
        clock.now += SECONDS / BEATS + 0.1
        slow.beat("works")
        taken.append(quick.take([UNIT]))
    assert [t for t in taken if t] == [(UNIT, 2)]
    assert taken.index((UNIT, 2)) >= SLOW * BEATS - 2


def test_what_is_there_is_not_sampled_again_unless_it_is_refused(tmp_path: Path) -> None:
    files, clock = FolderFiles(tmp_path), Clock(0.0)
    one, two = lessee(files, "one", clock), lessee(files, "two", clock)
    assert one.take([UNIT]) == (UNIT, 1)
    files.put(UNIT.rollouts(1, "one"), b"rollouts")
    clock.now += 10 * SECONDS
    assert two.take([UNIT]) is None
    put_facts(files, UNIT.refusal(1), {"why": "torn"}, b"")
    assert one.take([UNIT]) == (UNIT, 2)
    assert one.refused == ["torn"]
    assert two.refused == []


def test_a_damaged_lease_runs_out(tmp_path: Path) -> None:
    files, clock = FolderFiles(tmp_path), Clock(0.0)
    one = lessee(files, "one", clock)
    files.put(UNIT.lease(1), b"torn")
    assert one.take([UNIT]) is None
    clock.now += SECONDS + 1
    assert one.take([UNIT]) == (UNIT, 2)


def test_a_store_is_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_IN, raising=False)
    assert probe_store(tmp_path / "not" / "there") == []
    assert list(tmp_path.iterdir()) == []
    (told,) = probe_store(f"memory://{tmp_path.name}-probe")
    assert f"${KEY_IN} is not set" in told
    monkeypatch.setenv(KEY_IN, "secret of both")
    check_store(f"memory://{tmp_path.name}-probe")
    check_store(None)
    monkeypatch.setattr(UrlFiles, "put_new", lambda *_: True)
    with pytest.raises(ConfigError, match="does not keep what is written first"):
        check_store(f"memory://{tmp_path.name}-probe")
