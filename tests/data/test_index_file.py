"""A mapped index gives, ordinal by ordinal, what indexes in memory gave before there was one."""

import hashlib
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import DIGEST, SPEC, encode, facts, text_of, write_corpus

from rntp.cli import main
from rntp.data import index_file, manifest, manifest_parts
from rntp.data.convert import convert
from rntp.data.documents import ShardIndexes
from rntp.data.index_file import COLUMNS, MappedIndex
from rntp.data.manifest import Manifest
from rntp.data.manifest_writer import ShardWriter
from rntp.data.mixture import MixedStream
from rntp.data.reader import Reader
from rntp.data.selection import Choice, Selection
from rntp.data.stream import ContextStream, data_digest
from rntp.errors import DataError

LENGTHS = [5 + n * 7919 % 41 for n in range(2500)]  # blocks of counts are of 1024 documents

# (documents, too short, digest of the contexts, of the ids) of streams over `LENGTHS`, as the code
# gave them that kept the numbers of all documents in a list.
GOLDEN: list[tuple[dict[str, Any], tuple[int, int, str, str]]] = [
    ({}, (2094, 157, "4e1f12ea8132ebb5", "f543e0824ca8ea13")),
    ({"split": "heldout"}, (223, 26, "332ffbfecce5120c", "1ebaf1f088bdfcdc")),
    ({"windows": "all"}, (4401, 157, "6863d5a8c3e2a203", "0df4af3d68af14f9")),
    ({"max_documents": 50}, (50, 157, "9194e0eab5d61c78", "1a591dc9817ead56")),
    (
        {"max_documents": 50, "windows": "all"},
        (101, 157, "8fa5ffdc98bd28da", "7b9ff9ba63a84f46"),
    ),
    ({"heldout_fraction": 0.0}, (2317, 183, "61ab879105a65099", "675a883fe719505c")),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNTP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "selections"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus as it was written before there were mapped indexes."""
    folder = tmp_path_factory.mktemp("corpora") / "plain"
    write_corpus(folder, LENGTHS, shard_bytes=1_000_000)
    return folder


@pytest.fixture(scope="module")
def mapped(plain: Path) -> Path:
    """The same, converted."""
    folder = plain.with_name("mapped")
    shutil.copytree(plain, folder)
    convert(folder)
    return folder


@pytest.fixture
def copy(mapped: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(mapped, tmp_path / "copy"))


def stream(corpus: Manifest, **changes: Any) -> ContextStream:
    settings = {"seed": 3, "context_tokens": 16, "min_document_tokens": 8, "split": "train"}
    return ContextStream(corpus, encode, **{**settings, "heldout_fraction": 0.1, **changes})


def summary(contexts: ContextStream) -> tuple[int, int, str, str]:
    size = contexts.num_documents
    read = [contexts[n] for n in [*range(200), size - 1, size, 3 * size + 5]]
    ids = " ".join(context.document_id for context in read)
    digest = data_digest(read, [[]] * len(read))
    return size, contexts.num_too_short, digest, hashlib.sha256(ids.encode()).hexdigest()[:16]


@pytest.mark.parametrize(("changes", "expected"), GOLDEN)
@pytest.mark.parametrize("kind", ["plain", "mapped"])
def test_ordinals_give_the_contexts_of_before(
    kind: str, changes: dict[str, Any], expected: Any, request: pytest.FixtureRequest
) -> None:
    corpus = Manifest.load(request.getfixturevalue(kind))
    assert isinstance(corpus.documents, MappedIndex if kind == "mapped" else ShardIndexes)
    assert summary(stream(corpus, **changes)) == expected
    assert summary(stream(corpus, **changes)) == expected  # from the counts that were kept


def test_a_converted_corpus_is_the_same_corpus(plain: Path, mapped: Path) -> None:
    before, after = Manifest.load(plain), Manifest.load(mapped, tolerant=True)
    assert before.digest == after.digest
    assert before.digest == "64b345bdacca8aabc4ac5435bf9ed8fe930d9b6a4d9ee2a851a105395e6bbcd3"
    assert before.document_ids == after.document_ids
    assert after.num_tokens.tolist() == before.num_tokens.tolist() == LENGTHS
    assert after.total_tokens == before.total_tokens == 62485
    assert np.array_equal(before.documents.draws, after.documents.draws)
    assert [before.read(n) for n in range(0, 2500, 97)] == [
        after.read(n) for n in range(0, 2500, 97)
    ]
    for n in (-1, 2500):
        with pytest.raises(IndexError):
            after.read(n)
    assert after.funnel == before.funnel
    assert Manifest.load(mapped).verify() == []


@pytest.mark.parametrize("window", [0, 16])
def test_places_are_those_of_a_list(mapped: Path, window: int, cache: Path) -> None:
    documents = Manifest.load(mapped).documents
    for split in ("train", "heldout"):
        found = Selection(documents, Choice(split, 0.3, 20, window), cache)  # type: ignore[arg-type]
        inside = (documents.draws < 0.3) == (split == "heldout")
        numbers = np.flatnonzero(inside & (documents.num_tokens >= 20)).tolist()
        expected = [(n, 0, 0) for n in numbers]
        if window:
            counts = {n: -(-LENGTHS[n] // window) for n in numbers}
            expected = [
                (n, k * LENGTHS[n] // count, (k + 1) * LENGTHS[n] // count)
                for n, count in counts.items()
                for k in range(count)
            ]
        assert len(found) == len(expected) > 100
        assert [found[place] for place in range(len(found))] == expected
        assert found.num_members == inside.sum()


def test_counts_are_kept_for_mapped_indexes_and_made_again_where_damaged(
    plain: Path, mapped: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(Manifest.load(plain))
    assert not cache.exists()
    first = stream(Manifest.load(mapped))
    kept = list(cache.iterdir())
    assert [path.stat().st_size for path in kept] == 2 * [32 + 8 * (1 + 3)]  # one a split
    monkeypatch.setattr(MappedIndex, "scan", lambda _: pytest.fail("all documents were read"))
    assert stream(Manifest.load(mapped), split="heldout").num_documents == 223
    again = stream(Manifest.load(mapped))
    assert data_digest([again[7]], [[]]) == data_digest([first[7]], [[]])
    monkeypatch.undo()
    monkeypatch.setenv("RNTP_CACHE", str(cache.parent))
    for path in kept:
        _flip(path, -5)
    assert summary(stream(Manifest.load(mapped))) == GOLDEN[0][1]


def test_a_cache_that_cannot_be_written_changes_nothing(
    mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RNTP_CACHE", str(tmp_path / "file"))
    assert summary(stream(Manifest.load(mapped))) == GOLDEN[0][1]


@pytest.mark.slow
def test_mixtures_and_workers_read_through_it(plain: Path, mapped: Path) -> None:
    def mixed(folder: Path) -> MixedStream:
        corpus = Manifest.load(folder)
        return MixedStream([stream(corpus), stream(corpus, seed=9)], [700, 300])

    ordinals = list(range(0, 1000, 83))
    expected = [mixed(plain)[n] for n in ordinals]
    reader = Reader(mixed(mapped), workers=1, kind="process")
    try:
        found = reader.take(ordinals)
    finally:
        reader.close()
    assert data_digest(found, [[]] * len(found)) == data_digest(expected, [[]] * len(expected))


def test_what_goes_to_a_worker_does_not_grow_with_the_corpus(plain: Path, mapped: Path) -> None:
    sizes = {folder: len(pickle.dumps(stream(Manifest.load(folder)))) for folder in (plain, mapped)}
    assert sizes[plain] > 2500 * 112
    assert sizes[mapped] < 10_000
    again = pickle.loads(pickle.dumps(stream(Manifest.load(mapped))))
    assert summary(again) == GOLDEN[0][1]


def test_pages_that_were_let_go_of_come_back(mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "_LOOKS", 1)
    contexts = stream(Manifest.load(mapped))
    assert summary(contexts) == GOLDEN[0][1]
    ordinals = list(range(400))
    expected = [contexts[n].document_id for n in ordinals]
    with ThreadPoolExecutor(8) as pool:
        assert [c.document_id for c in pool.map(contexts.__getitem__, ordinals)] == expected


def test_of_many_shards_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_MOST_LOOKED_AT", 2)
    folder = tmp_path / "c"
    size = len(write_corpus(folder, [50] * 40, shard_bytes=20_000).shards)
    convert(folder)
    assert size == 10  # of which 0 and 5 are looked at
    for number, found in ((3, False), (5, True)):
        shard = folder / f"shard-{number:05d}.tar"
        whole = shard.read_bytes()
        shard.write_bytes(bytes(len(whole)))
        if found:
            with pytest.raises(DataError, match=r"shard-00005\.tar is another file"):
                Manifest.load(folder, tolerant=True)
        else:
            corpus = Manifest.load(folder, tolerant=True)
            contexts = stream(corpus, heldout_fraction=0.0, max_damaged=0.1)
            assert contexts.num_documents == 40
            _read_all(contexts)
            assert {damage.number for _, damage in contexts.damaged} == {12, 13, 14, 15}
            with pytest.raises(DataError, match=r"4 documents .* are damaged and 3 are allowed"):
                _read_all(stream(corpus, heldout_fraction=0.0, max_damaged=0.09))
        shard.write_bytes(whole)


def test_a_damaged_row_is_found_and_its_document_replaced(copy: Path) -> None:
    _flip(copy / "index.rows.npy", 1000)  # a row of the first 64
    corpus = Manifest.load(copy, tolerant=True)
    with pytest.raises(DataError, match=r"rows 0 to 63 of the index.*rntp data convert"):
        corpus.read(63)
    assert corpus.read(64).id == "doc-64"
    assert "index.rows.npy: the SHA-256" in Manifest.load(copy).verify()[0]
    contexts = stream(corpus, heldout_fraction=0.0, max_damaged=0.05)
    seen = {contexts[n].document_id for n in range(contexts.num_documents)}
    assert not seen & {f"doc-{n}" for n in range(64)}
    assert 0 < len(contexts.damaged) <= 64
    with pytest.raises(DataError, match=r"documents of .* are damaged and 0 are allowed"):
        _read_all(stream(corpus, heldout_fraction=0.0))
    convert(copy)
    assert Manifest.load(copy).read(63).text == text_of(LENGTHS[63], 63_000)


@pytest.mark.parametrize("column", ["tokens", "draws"])
def test_damage_of_what_decides_the_split_is_found(copy: Path, column: str) -> None:
    stream(Manifest.load(copy))
    _flip(copy / f"index.{column}.npy", -1)  # of the last document
    with pytest.raises(DataError, match=rf"index\.{column}\.npy: the SHA-256.*rntp data convert"):
        stream(Manifest.load(copy), heldout_fraction=0.2)
    known = stream(Manifest.load(copy))  # counted before the damage
    with pytest.raises(DataError, match=r"do not match their check|has changed since"):
        _read_all(known)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_file_that_is_missing_or_short_does_not_open(copy: Path, column: str) -> None:
    path = copy / f"index.{column}.npy"
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(DataError, match=rf"index\.{column}\.npy has .* bytes and should have"):
        Manifest.load(copy)
    path.unlink()
    with pytest.raises(DataError, match=rf"index\.{column}\.npy cannot be read.*rntp data convert"):
        Manifest.load(copy, tolerant=True)


@pytest.mark.parametrize("kind", ["index", "parts"])
def test_a_manifest_names_no_file_outside_its_folder(copy: Path, kind: str) -> None:
    path = copy / "manifest.json"
    facts = json.loads(path.read_text())
    entry = {**facts["index"]["rows"], "name": "../index.rows.npy"}
    path.write_text(json.dumps({**facts, kind: {"rows": entry} if kind == "index" else [entry]}))
    with pytest.raises(DataError, match="outside its folder"):
        Manifest.load(copy)


def test_preparation_writes_it_from_so_many_documents_on(tmp_path: Path) -> None:
    for name, index_from in (("with", 70), ("without", 71)):
        with ShardWriter(
            tmp_path / name,
            shard_bytes=20_000,
            tokenizer_digest=DIGEST,
            tokenizer_spec=SPEC,
            prep_digest="0" * 64,
            with_ids=True,
            index_from=index_from,
        ) as shards:
            for n in range(70):
                ids = encode(text_of(9, n)).tolist()
                shards.add(f"doc-{n}", text_of(9, n), facts(n), 9, ids)
            shards.finish({"pages": 70})
    assert not list((tmp_path / "without").glob("index.*"))
    written = {path.name: path.read_bytes() for path in (tmp_path / "with").iterdir()}
    main(["data", "convert", str(tmp_path / "without")])
    converted = {path.name: path.read_bytes() for path in (tmp_path / "without").iterdir()}
    assert written == converted
    document, ids = Manifest.load(tmp_path / "with").read_ids(69)
    assert (document.id, ids.tolist()) == ("doc-69", list(range(69, 78)))


def test_many_shards_stand_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_corpus(tmp_path / "whole", [50] * 60, shard_bytes=20_000)
    monkeypatch.setattr(manifest_parts, "SHARDS_PER_PART", 3)
    folder = tmp_path / "parts"
    corpus = write_corpus(folder, [50] * 60, shard_bytes=20_000)
    assert len(corpus.shards) == len(whole.shards) == 15
    assert corpus.digest == whole.digest
    facts = json.loads((folder / "manifest.json").read_text())
    assert (facts["format"], "shards" in facts) == (2, False)
    names = [part["name"] for part in facts["parts"]]
    assert names == [f"manifest-0000{n}.json" for n in range(5)]
    assert corpus.shards == whole.shards
    convert(whole.folder)  # an older corpus gets its parts, too
    assert (whole.folder / names[2]).read_bytes() == (folder / names[2]).read_bytes()
    assert Manifest.load(whole.folder).digest == corpus.digest
    _flip(folder / names[1], 20)
    with pytest.raises(DataError, match=r"manifest-00001\.json: the SHA-256"):
        Manifest.load(folder)


def _read_all(contexts: ContextStream) -> None:
    for ordinal in range(contexts.num_documents):
        contexts[ordinal]


def _flip(path: Path, position: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[position] ^= 1
    path.write_bytes(payload)
