"""Sources of every kind, whole and damaged."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

zstandard = pytest.importorskip("zstandard", reason="extra `prep`")

from rntp_data_prep.page import MAX_PAGE_BYTES  # noqa: E402
from rntp_data_prep.sources import check, pages  # noqa: E402

from rntp.errors import DataError  # noqa: E402

ROWS = [
    {"url": f"https://e.org/{n}", "title": f"T{n}", "text": f"Text number {n}."} for n in range(50)
]


def lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def pack(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    if name.endswith(".zst"):
        half = len(data) // 2  # two frames, as many tools write them
        compress = zstandard.ZstdCompressor().compress
        return compress(data[:half]) + compress(data[half:])
    return data


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, names: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in names:
            add(tar, name, data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_rows_of_lines_are_pages(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pack(name, lines(ROWS)))
    assert len(check(str(path))) == 64
    found = list(pages(str(path)))
    assert [(p.url, p.title, p.text, p.html) for p in found] == [
        (row["url"], row["title"], row["text"], None) for row in ROWS
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_cut_or_damaged_stream_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = pack(name, lines(ROWS * 20))
    for damaged in (whole[: 2 * len(whole) // 3], whole[:-3], whole[:100] + b"xx" + whole[102:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.jsonl\.\w+ is truncated or damaged"):
            check(str(path))


def test_a_frame_that_wants_a_huge_window_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=29)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    frame = compressor.compressobj()  # without the size of its content, so the window counts
    path.write_bytes(frame.compress(lines(ROWS)) + frame.flush())
    with pytest.raises(DataError, match="is truncated or damaged"):
        check(str(path))


def test_a_bomb_is_one_page_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    data = lines(ROWS[:1]) + b"0" * (MAX_PAGE_BYTES * 4) + b"\n" + lines(ROWS[1:2])
    path.write_bytes(zstandard.ZstdCompressor().compress(data))
    assert path.stat().st_size < 10_000
    check(str(path))
    assert [p.reason for p in pages(str(path))] == ["", "page_too_large", ""]


def test_hostile_lines_are_dropped_and_named(tmp_path: Path) -> None:
    hostile = {
        b'{"text": "cut': "malformed_line",
        b'{"text": NaN}': "no_text_field",
        b'{"text": 3}': "no_text_field",
        b'["text"]': "malformed_line",
        b'{"text": "lone \\ud800 surrogate"}': "not_unicode",
        b'{"text": "\xff\xfe"}': "malformed_line",
        b"[" * 100_000: "malformed_line",
        b'{"text": "nul \\u0000 and <think>", "url": "u"}': "",
    }
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(hostile) + b"\n\n")
    found = list(pages(str(path)))
    assert [p.reason for p in found] == list(hostile.values())
    assert found[0].url == "a.jsonl#1"


def test_a_webdataset_tar_is_grouped_by_key(tmp_path: Path) -> None:
    facts = json.dumps({"url": "https://e.org/b", "title": "B"}).encode()
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("x/a.txt", b"First."),
            ("x/b.html", b"<p>Second.</p>"),
            ("x/a.json", json.dumps({"title": "A"}).encode()),  # not beside its text
            ("x/b.json", facts),
            ("x/c.txt", b"Third."),
            ("x/c.txt", b"Third again."),
            ("x/d.json", b"{"),
            ("x/e.json", facts),
        ],
    )
    check(str(path))
    assert [(p.url, p.title, p.text, p.html, p.reason) for p in pages(str(path))] == [
        ("x/a", "A", "First.", None, ""),
        ("https://e.org/b", "B", None, "<p>Second.</p>", ""),
        ("x/c", "", None, None, "duplicate_member"),
        ("x/d", "", None, None, "malformed_member"),
        ("https://e.org/b", "", None, None, "no_text_field"),
    ]


def test_a_damaged_tar_is_not_taken_for_a_short_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.txt", b"text" * 200) for n in range(20)])
    whole = path.read_bytes()
    header = whole.index(b"10.txt")
    flipped = bytearray(whole)
    flipped[header + 150] ^= 1
    zeroed = bytearray(whole)
    zeroed[header : header + 512] = bytes(512)
    for damaged in (flipped, zeroed, whole[: header + 700], whole + b"x" * 512):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.tar is truncated or damaged"):
            check(str(path))


def test_parquet_wet_html_and_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="extra `parquet`")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert [p.text for p in pages(str(tmp_path / "a.parquet"))] == [r["text"] for r in ROWS]
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"b\.parquet is truncated or damaged, .* cannot be "):
        list(pages(str(tmp_path / "b.parquet")))

    body = "Plain text of a page – é.".encode()
    record = (
        b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: https://e.org/w\r\n"
        b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n" % (len(body), body)
    )
    (tmp_path / "a.warc.wet.gz").write_bytes(gzip.compress(record))
    check(str(tmp_path / "a.warc.wet.gz"))
    [page] = pages(str(tmp_path / "a.warc.wet.gz"))
    assert (page.url, page.text, page.html) == ("https://e.org/w", body.decode(), None)
    (tmp_path / "a.warc.wet.gz").write_bytes(gzip.compress(record)[:-5])
    with pytest.raises(DataError, match="truncated"):
        check(str(tmp_path / "a.warc.wet.gz"))

    (tmp_path / "p.html").write_bytes('<meta charset="latin-1"><p>caf\xe9'.encode("latin-1"))
    [page] = pages(str(tmp_path / "p.html"))
    assert page.html is not None
    assert page.html.endswith("café")
    (tmp_path / "p.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"p\.txt holds no usable page \(undecodable 1\)"):
        list(pages(str(tmp_path / "p.txt")))


def test_what_datasets_streams(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="extra `hf`")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_bytes(lines(ROWS))
    found = list(pages(f"hf:{tmp_path / 'd'}"))
    assert [p.text for p in found] == [row["text"] for row in ROWS]
    assert check(f"hf:{tmp_path / 'd'}") != check("hf:other")
    with pytest.raises(DataError, match="hf:/nowhere cannot be read"):
        list(pages("hf:/nowhere"))
