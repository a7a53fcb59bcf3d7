"""Every fault of a shard: what is read, what is replaced, what is counted."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus import encode, text_of, write_corpus

from rntp.cli import main
from rntp.data.convert import convert
from rntp.data.damage import Damage
from rntp.data.manifest import Manifest
from rntp.data.stream import ContextStream
from rntp.errors import DataError

NUM_DOCS = 40


@pytest.fixture(params=["index in memory", "mapped index"])
def folder(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 documents of 50 words in one shard."""
    monkeypatch.setenv("RNTP_CACHE", str(tmp_path / "cache"))
    write_corpus(tmp_path / "c", [50] * NUM_DOCS)
    if request.param == "mapped index":
        convert(tmp_path / "c")
    return tmp_path / "c"


def stream(folder: Path, max_damaged: float = 0.99, **changes: Any) -> ContextStream:
    return ContextStream(
        Manifest.load(folder, tolerant=True),
        encode,
        seed=3,
        context_tokens=24,
        min_document_tokens=16,
        heldout_fraction=0.0,
        split="train",
        max_damaged=max_damaged,
        **changes,
    )


def words(number: int) -> str:
    """Bytes that only document `number` has."""
    return text_of(50, 1000 * number)


def edit(folder: Path, change: Callable[[bytearray], bytearray | bytes | None]) -> None:
    shard = folder / "shard-00000.tar"
    data = bytearray(shard.read_bytes())
    changed = change(data)
    shard.write_bytes(data if changed is None else changed)


def header_of(data: bytearray, number: int) -> int:
    return data.index(f"doc-{number}.txt".encode() + b"\0")


def flip_header(data: bytearray) -> None:
    data[header_of(data, 20) + 150] ^= 1  # its checksum


def zero_header(data: bytearray) -> None:
    start = header_of(data, 20)
    data[start : start + 512] = bytes(512)


def flip_payload(data: bytearray) -> None:
    data[data.index(words(20).encode()) + 30] ^= 1


def cut_in_a_member(data: bytearray) -> bytes:
    return data[: header_of(data, 20) + 600]


def cut_at_a_boundary(data: bytearray) -> bytes:
    return data[: header_of(data, 20)]


def half_a_document(data: bytearray) -> bytes:
    return data[: data.index(b"doc-20.json\0")]


def garbage_behind(data: bytearray) -> bytes:
    return bytes(data) + os.urandom(4096)


def duplicate_name(data: bytearray) -> None:
    start = header_of(data, 20)
    data[start : start + 10] = b"doc-19.txt"


def empty(_: bytearray) -> bytes:
    return b""


def swapped(data: bytearray) -> bytes:
    return os.urandom(len(data))


LOST = {  # fault: documents that cannot be read
    flip_header: set(),
    zero_header: set(),
    duplicate_name: set(),
    garbage_behind: set(),
    flip_payload: {20},
    cut_in_a_member: set(range(20, NUM_DOCS)),
    cut_at_a_boundary: set(range(20, NUM_DOCS)),
    half_a_document: set(range(20, NUM_DOCS)),
    empty: set(range(NUM_DOCS)),
    swapped: set(range(NUM_DOCS)),
}


@pytest.mark.parametrize("fault", LOST, ids=lambda f: f.__name__)
def test_no_document_is_lost_uncounted(folder: Path, fault: Any) -> None:
    whole = [stream(folder)[n].document_id for n in range(NUM_DOCS)]
    edit(folder, fault)
    lost = {f"doc-{n}" for n in LOST[fault]}
    if len(lost) == NUM_DOCS:
        listed = r"damaged.*run `rntp data prep` again:\n.*shard-00000"
        at_open = r"shard-00000\.tar is another file .* run `rntp data prep` again"
        with pytest.raises(DataError, match=at_open if fault is swapped else listed):
            [stream(folder, 0.99)[n] for n in range(NUM_DOCS)]
        return
    damaged = stream(folder)
    found = [damaged[n].document_id for n in range(NUM_DOCS)]
    assert {damage.document_id for _, damage in damaged.damaged} == lost
    for was, now in zip(whole, found, strict=True):
        assert now == was if was not in lost else now not in lost
    again = stream(folder)
    backwards = [again[n].document_id for n in reversed(range(NUM_DOCS))]
    assert backwards[::-1] == found  # whatever was known to be damaged when


@pytest.mark.parametrize("tolerant", [True, False])
def test_shards_that_changed_places_are_found_when_the_corpus_is_opened(
    tmp_path: Path, tolerant: bool
) -> None:
    write_corpus(tmp_path / "c", [50] * NUM_DOCS, shard_bytes=20_000)
    one, two = (tmp_path / "c" / f"shard-0000{n}.tar" for n in (1, 2))
    assert one.stat().st_size == two.stat().st_size
    flip_first = bytearray(one.read_bytes())
    flip_first[600] ^= 1  # of the first document only
    whole = one.read_bytes(), two.read_bytes()
    one.write_bytes(flip_first)
    assert Manifest.load(tmp_path / "c", tolerant=tolerant).num_docs == NUM_DOCS
    one.write_bytes(whole[1])
    two.write_bytes(whole[0])
    with pytest.raises(DataError, match=r"shard-00001\.tar is another file than the one"):
        Manifest.load(tmp_path / "c", tolerant=tolerant)
    with pytest.raises(SystemExit) as ended:
        main(["data", "verify", str(tmp_path / "c")])
    assert ended.value.code == 3


def test_past_the_budget_the_list_is_printed(folder: Path) -> None:
    edit(folder, flip_payload)
    inside = stream(folder, 1.2 / NUM_DOCS)
    assert len([inside[n] for n in range(NUM_DOCS)]) == NUM_DOCS
    [(digest, damage)] = inside.damaged
    assert digest == Manifest.load(folder).digest
    assert (damage.number, damage.document_id, damage.reason) == (
        20,
        "doc-20",
        "does not match its hash",
    )
    with pytest.raises(DataError, match=r"1 documents .* 0 are allowed .*\n.*00000\.tar: doc"):
        [stream(folder, 0.5 / NUM_DOCS)[n] for n in range(NUM_DOCS)]


def test_what_lies_beyond_the_end_is_known_at_the_start(folder: Path) -> None:
    edit(folder, cut_at_a_boundary)
    with pytest.raises(DataError, match=r"20 documents .* 4 are allowed .*\n.*lies beyond the end"):
        stream(folder, 0.1)
    (folder / "shard-00000.tar").unlink()
    with pytest.raises(DataError, match="40 documents"):
        stream(folder, 0.1)


def test_a_document_set_aside_stays_aside_after_it_is_repaired(folder: Path) -> None:
    shard = folder / "shard-00000.tar"
    good = shard.read_bytes()
    edit(folder, flip_payload)
    first = stream(folder)
    ids = [first[n].document_id for n in range(NUM_DOCS)]
    shard.write_bytes(good)
    later = stream(folder)
    later.know(first.damaged)
    assert [later[n].document_id for n in range(NUM_DOCS)] == ids
    assert "doc-20" not in ids
    fresh = stream(folder)
    fresh.know([("another corpus", damage) for _, damage in first.damaged])
    assert "doc-20" in [fresh[n].document_id for n in range(NUM_DOCS)]
    assert fresh.damaged == []


def test_reading_errors_count_as_damage_and_are_tried_once_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    original = os.pread

    def failing(descriptor: int, num_bytes: int, offset: int) -> bytes:
        part = original(descriptor, num_bytes, offset)
        if words(20).encode() in part:
            tries.append(1)
            raise OSError(5, "Input/output error")
        return part

    monkeypatch.setattr("rntp.data.storage.os.pread", failing)
    read = stream(folder)
    assert len([read[n] for n in range(NUM_DOCS)]) == NUM_DOCS
    assert [d.reason for _, d in read.damaged] == ["cannot be read (Input/output error)"]
    assert len(tries) == 2


def test_substitutes_are_spread_and_damaged_ones_are_passed_over(folder: Path) -> None:
    edit(folder, cut_at_a_boundary)
    read = stream(folder)
    reads = [read.read(n) for n in range(20 * NUM_DOCS)]
    replaced = [r.context.document_id for r in reads if r.substituted]
    assert len(replaced) == 10 * NUM_DOCS
    counts = [replaced.count(f"doc-{n}") for n in range(NUM_DOCS)]
    assert counts[20:] == [0] * 20
    # 400 draws over 20: 20 each, standard deviation 4.4; the bound is four of them.
    assert all(2 < count < 38 for count in counts[:20])


def test_a_tar_reader_loses_them_without_a_word(folder: Path) -> None:
    """Why shards are not iterated: what the standard library makes of the same faults."""
    good = (folder / "shard-00000.tar").read_bytes()
    left = {}
    for fault in (flip_header, zero_header, cut_at_a_boundary, half_a_document):
        (folder / "shard-00000.tar").write_bytes(good)
        edit(folder, fault)
        data = io.BytesIO((folder / "shard-00000.tar").read_bytes())
        with tarfile.open(fileobj=data) as tar:
            left[fault.__name__] = len(tar.getnames())
    assert left == {
        "flip_header": 40,
        "zero_header": 40,
        "cut_at_a_boundary": 40,
        "half_a_document": 41,
    }


def test_damage_is_said_in_one_line() -> None:
    damage = Damage(3, "doc-3", "c/shard-00000.tar", "does not match its hash")
    assert str(damage) == "c/shard-00000.tar: document doc-3 (number 3): does not match its hash"
