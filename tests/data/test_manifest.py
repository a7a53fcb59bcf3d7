import hashlib
import json
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus import DIGEST, SPEC, facts, text_of, write_corpus, writer

from rntp.data.manifest import Manifest, _read_payloads
from rntp.errors import DataError


def test_documents_come_back_as_they_were_written(tmp_path: Path) -> None:
    lengths = [3, 50, 7, 400]
    corpus = write_corpus(tmp_path / "c", lengths)
    assert corpus.num_docs == 4
    assert corpus.num_tokens.dtype == np.int64
    assert corpus.num_tokens.tolist() == lengths
    assert corpus.document_ids == ["doc-0", "doc-1", "doc-2", "doc-3"]
    assert (corpus.tokenizer_digest, corpus.tokenizer_spec) == (DIGEST, SPEC)
    assert corpus.funnel == {"pages": 4, "kept": 4}
    document = corpus.read(2)
    assert document.id == "doc-2"
    assert document.text == text_of(7, 2000)
    assert document.metadata == {"id": "doc-2", **facts(2)}
    assert corpus.verify() == []


def test_small_shards_hold_the_same_documents(tmp_path: Path) -> None:
    one = write_corpus(tmp_path / "one", [100] * 40)
    many = write_corpus(tmp_path / "many", [100] * 40, shard_bytes=20_480)
    assert len(one.shards) == 1
    assert len(many.shards) == 6
    assert all(shard.bytes <= 20_480 for shard in many.shards)
    assert [one.read(n) for n in range(40)] == [many.read(n) for n in range(40)]
    assert many.verify() == []
    for n in (-1, 40):
        with pytest.raises(IndexError):
            many.read(n)


def test_bytes_and_digest_are_reproducible_and_survive_a_move(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "a", [5, 6], shard_bytes=3_000)
    second = write_corpus(tmp_path / "b", [5, 6], shard_bytes=3_000)
    other = write_corpus(tmp_path / "c", [5, 7], shard_bytes=3_000)
    names = sorted(path.name for path in first.folder.iterdir())
    assert names == [
        "manifest.json",
        "shard-00000.idx.npy",
        "shard-00000.tar",
        "shard-00001.idx.npy",
        "shard-00001.tar",
    ]
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
    shutil.move(first.folder, tmp_path / "elsewhere")
    assert Manifest.load(tmp_path / "elsewhere").digest == second.digest
    assert other.digest != second.digest
    assert len(second.digest) == 64


def test_a_shard_is_a_plain_webdataset_tar(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", [5, 6])
    with tarfile.open(tmp_path / "c" / "shard-00000.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == ["doc-0.txt", "doc-0.json", "doc-1.txt", "doc-1.json"]
        assert all(m.isreg() and m.mtime == m.uid == m.gid == 0 for m in members)
        text = tar.extractfile(members[2])
        metadata = tar.extractfile(members[3])
        assert text is not None
        assert metadata is not None
        assert text.read().decode() == corpus.read(1).text
        assert json.loads(metadata.read()) == corpus.read(1).metadata


def test_a_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", [50, 50])
    shard = tmp_path / "c" / "shard-00000.tar"
    payload = bytearray(shard.read_bytes())
    payload[payload.index(b"w1003")] ^= 1
    shard.write_bytes(payload)
    assert corpus.read(0).text == text_of(50)
    with pytest.raises(DataError, match=r"shard-00000\.tar: document doc-1 .*rntp data prep"):
        corpus.read(1)
    problems = corpus.verify()
    assert len(problems) == 2
    assert "SHA-256" in problems[0]
    assert "doc-1" in problems[1]


def test_a_damaged_member_header_loses_no_document(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", [50] * 4)
    shard = tmp_path / "c" / "shard-00000.tar"
    payload = bytearray(shard.read_bytes())
    payload[payload.index(b"doc-1.txt")] ^= 1
    shard.write_bytes(payload)
    with tarfile.open(shard) as tar:
        assert len(tar.getmembers()) == 2  # what reading the tar itself would give: half, silently
    assert [corpus.read(n).id for n in range(4)] == corpus.document_ids
    assert len(corpus.verify()) == 1


def test_a_read_that_fails_once_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "c", [50])
    reads = []

    def flaky(*place: Any) -> tuple[bytes, bytes]:
        text, metadata = _read_payloads(*place)
        reads.append(text)
        return (b"?" + text[1:] if len(reads) == 1 else text), metadata

    monkeypatch.setattr("rntp.data.manifest._read_payloads", flaky)
    assert corpus.read(0).text == text_of(50)
    assert len(reads) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: shutil.rmtree(c), "no corpus folder"),
        (lambda c: (c / "manifest.json").unlink(), "has no manifest.json"),
        (lambda c: (c / "manifest.json").write_text("{"), "damaged"),
        (lambda c: _edit(c, format=99), "format 99"),
        (lambda c: _edit(c, shards=[]), "holds no documents"),
        (lambda c: _edit(c, digest="0" * 64), "edited"),
        (lambda c: _edit(c, tokenizer={"spec": "x", "digest": "y"}), "edited"),
        (lambda c: _edit(c, tokenizer=None), "damaged"),
        (lambda c: (c / "shard-00000.tar").unlink(), "shard-00000.tar cannot be read"),
        (lambda c: os.truncate(c / "shard-00000.tar", 4096), "has 4096 bytes and should have"),
        (lambda c: _flip(c / "shard-00000.idx.npy", -1), r"idx\.npy: the SHA-256"),
        (lambda c: (c / "shard-00000.idx.npy").unlink(), r"idx\.npy cannot be read"),
    ],
)
def test_a_damaged_corpus_does_not_open(tmp_path: Path, damage, message: str) -> None:
    folder = write_corpus(tmp_path / "c", [50]).folder
    damage(folder)
    with pytest.raises(DataError, match=message):
        Manifest.load(folder)


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "c", [50]).folder
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    shards[0]["name"] = "../shard-00000.tar"
    _edit(folder, shards=shards)
    with pytest.raises(DataError, match="outside its folder"):
        Manifest.load(folder)


def test_verify_reports_what_is_lost_while_the_corpus_is_open(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", [100] * 20, shard_bytes=20_480)
    (corpus.folder / "shard-00001.tar").unlink()
    problems = corpus.verify()
    assert len(problems) == 1
    assert "shard-00001.tar" in problems[0]


def test_a_cut_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        _write_until_interrupted(folder)
    assert list(tmp_path.iterdir()) == []
    with writer(folder) as shards:
        shards.add("doc-0", "some text", facts(0), 2)
    assert list(tmp_path.iterdir()) == []


def test_damage_between_writing_and_publishing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupting(shards: object) -> None:
        original(shards)
        _flip(shards.partial_folder / "shard-00000.tar", 515)  # type: ignore[attr-defined]

    original = type(writer(tmp_path / "x"))._close_shard
    monkeypatch.setattr("rntp.data.manifest_writer.ShardWriter._close_shard", corrupting)
    with pytest.raises(DataError, match="read back is not what was written"):
        write_corpus(tmp_path / "c", [50])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rntp.data.manifest_writer.sync", full)
    with pytest.raises(DataError, match=r"No space left.*free some space"):
        write_corpus(tmp_path / "c", [50])
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_never_overwritten(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "c", [50])
    assert write_corpus(tmp_path / "c", [50]).digest == first.digest
    with pytest.raises(DataError, match="already holds another corpus"):
        write_corpus(tmp_path / "c", [51])
    assert Manifest.load(tmp_path / "c").digest == first.digest
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(DataError, match="is not a corpus"):
        writer(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    assert write_corpus(tmp_path / "empty", [50]).digest == first.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "empty", "mine"]


def test_documents_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "c") as shards:
        shards.add("doc-0", "some text", facts(0), 2)
        for name, text, metadata, num_tokens, message in [
            ("doc-0", "other", facts(1), 1, "used twice"),
            ("a.b", "other", facts(1), 1, "cannot name a tar member"),
            ("../x", "other", facts(1), 1, "cannot name a tar member"),
            ("doc-1", "other", {"url": "u"}, 1, "lacks title, source"),
            ("doc-1", "", facts(1), 0, "is empty"),
            ("doc-1", "\ud800", facts(1), 1, "not Unicode"),
        ]:
            with pytest.raises(DataError, match=message):
                shards.add(name, text, metadata, num_tokens)
        assert shards.finish({}).num_docs == 1


def test_an_empty_corpus_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="corpus is empty"), writer(tmp_path / "c") as shards:
        shards.finish({})
    assert list(tmp_path.iterdir()) == []


def test_reading_from_many_threads_leaves_no_file_open(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", [100] * 64, shard_bytes=20_000)
    open_before = len(os.listdir("/proc/self/fd"))
    expected = hashlib.sha256("".join(corpus.read(n).text for n in range(64)).encode()).digest()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            texts = [document.text for document in pool.map(corpus.read, range(64))]
            assert hashlib.sha256("".join(texts).encode()).digest() == expected
    assert len(os.listdir("/proc/self/fd")) == open_before


def _write_until_interrupted(folder: Path) -> None:
    with writer(folder) as shards:
        shards.add("doc-0", "some text", facts(0), 2)
        assert shards.partial_folder.is_dir()
        raise KeyboardInterrupt


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _flip(path: Path, position: int) -> None:
    payload = bytearray(path.read_bytes())
    payload[position] ^= 1
    path.write_bytes(payload)
