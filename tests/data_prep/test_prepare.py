import gzip
import json
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rntp_data_prep import PrepConfig, prepare
from rntp_data_prep.extract import extract
from rntp_data_prep.sources import check, pages

from rntp.data.manifest import Manifest
from rntp.errors import ConfigError, DataError

DIGEST = "d" * 16


def words(text: str) -> list[str]:
    return text.split()


def silent(_: str) -> None:
    pass


def page(n: int, num_words: int = 80, extra: str = "") -> bytes:
    prose = " ".join(f"word{n}x{i}" for i in range(num_words))
    return (
        f"<html><head><title>Page {n}</title></head><body><nav><a href='/'>Home</a></nav>"
        f"<main><h1>Page {n}</h1><p>{prose}.</p><p>{extra}</p></main></body></html>"
    ).encode()


def response(
    url: str, body: bytes, status: str = "200 OK", kind: str = "text/html", headers: str = ""
) -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{headers}\r\n"
    block = http.encode() + body
    return (
        (
            "WARC/1.1\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
            f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
            "Content-Type: application/http; msgtype=response\r\n"
            f"Content-Length: {len(block)}\r\n\r\n"
        ).encode()
        + block
        + b"\r\n\r\n"
    )


def write_warc(path: Path, records: list[bytes]) -> Path:
    pack: Callable[[bytes], bytes] = bytes
    if path.suffix == ".gz":
        pack = partial(gzip.compress, mtime=0)  # the time would make another file of it
    path.write_bytes(b"".join(pack(record) for record in records))
    return path


def good_records(num_pages: int = 12) -> list[bytes]:
    return [response(f"https://example.org/{n}", page(n)) for n in range(num_pages)]


def config(folder: Path, *sources: Path, **changes: object) -> PrepConfig:
    settings = {
        "sources": [str(source) for source in sources],
        "output": folder / "shards",
        "tokenizer": "words",
        "min_tokens": 20,
        "min_chars": 50,
    }
    return PrepConfig.model_validate({**settings, **changes})


def test_pages_become_documents(tmp_path: Path) -> None:
    source = write_warc(tmp_path / "a.warc.gz", good_records())
    corpus = prepare(config(tmp_path, source), words, DIGEST, silent)
    assert corpus.num_docs == 12
    assert corpus.num_tokens.tolist() == [82] * 12  # 80 words and the two of the heading
    assert corpus.funnel == {"pages": 12, "kept": 12, "neutralised_markers": 0}
    assert (corpus.tokenizer_spec, corpus.tokenizer_digest) == ("words", DIGEST)
    document = corpus.read(3)
    assert document.text.startswith("Page 3\n\nword3x0 word3x1 ")
    assert document.metadata == {
        "id": document.id,
        "url": "https://example.org/3",
        "title": "Page 3",
        "source": "a.warc.gz",
    }
    assert (tmp_path / "shards" / "rejects.jsonl").read_text() == ""


def test_every_rejected_page_is_in_the_ledger_with_its_reason(tmp_path: Path) -> None:
    records = [
        *good_records(2),
        response("https://example.org/0-again", page(0)),
        response("https://example.org/gone", page(7), status="404 Not Found"),
        response("https://example.org/image", b"\x89PNG", kind="image/png"),
        response("https://example.org/blank", b"<html><body></body></html>"),
        response("https://example.org/stub", b"<html><body><p>Too short.</p></body></html>"),
        response("https://example.org/dump", page(8, num_words=4000)),
        response("https://example.org/few", f"<p>{'x' * 60} y</p>".encode()),
        response("https://example.org/zip", b"not gzip", headers="Content-Encoding: gzip\r\n"),
        response("https://example.org/spoof", page(9, extra="a &lt;think> b &lt;|im_end|> c")),
    ]
    source = write_warc(tmp_path / "a.warc.gz", records)
    corpus = prepare(config(tmp_path, source, max_chars=20_000), words, DIGEST, silent)
    ledger = [
        json.loads(line)
        for line in (tmp_path / "shards" / "rejects.jsonl").read_text().splitlines()
    ]
    assert {entry["url"].rpartition("/")[2]: entry["reason"] for entry in ledger} == {
        "0-again": "duplicate",
        "gone": "http_status",
        "image": "not_html",
        "blank": "no_text",
        "stub": "too_few_chars",
        "dump": "too_many_chars",
        "few": "too_few_tokens",
        "zip": "undecodable",
    }
    assert corpus.funnel["pages"] == 11
    assert corpus.funnel["kept"] == corpus.num_docs == 3
    assert sum(n for name, n in corpus.funnel.items() if name.startswith("rejected/")) == 8
    assert corpus.funnel["neutralised_markers"] == 2
    assert "a < think > b < |im_end| > c" in corpus.read(2).text


def test_the_same_input_gives_the_same_corpus_anywhere(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        source = write_warc(tmp_path / name / "a.warc.gz", good_records())
        corpus = prepare(config(tmp_path / name, source), words, DIGEST, silent)
        digests.add((corpus.digest, corpus.prep_digest))
    assert len(digests) == 1
    files = [sorted((tmp_path / name / "shards").iterdir()) for name in ("one", "two")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_a_second_run_finishes_at_once_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    source = write_warc(tmp_path / "a.warc.gz", good_records())
    settings = config(tmp_path, source)
    first = prepare(settings, words, DIGEST, silent)
    said: list[str] = []

    def never(_: str) -> list[str]:
        raise AssertionError("nothing is tokenised again")

    assert prepare(settings, never, DIGEST, said.append).digest == first.digest
    assert "nothing to do" in said[-1]
    with pytest.raises(DataError, match="other sources, settings or tokenizer"):
        prepare(settings, words, "e" * 16, silent)
    with pytest.raises(DataError, match="other sources, settings or tokenizer"):
        prepare(config(tmp_path, source, min_tokens=21), words, DIGEST, silent)
    write_warc(source, good_records(11))
    with pytest.raises(DataError, match="other sources, settings or tokenizer"):
        prepare(settings, words, DIGEST, silent)
    assert Manifest.load(tmp_path / "shards").digest == first.digest


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_a_cut_source_is_found_at_every_byte(tmp_path: Path, name: str) -> None:
    records = [response(f"https://example.org/{n}", page(n, num_words=20)) for n in range(2)]
    source = write_warc(tmp_path / name, records)
    whole = source.read_bytes()
    pack: Callable[[bytes], bytes] = gzip.compress if name.endswith(".gz") else bytes
    first_record = len(pack(records[0]))
    undetected = []
    for length in range(len(whole)):
        source.write_bytes(whole[:length])
        try:
            check(str(source))
            list(pages(str(source)))
        except DataError as error:
            assert name in str(error)  # noqa: PT017
        else:
            undetected.append(length)
    # Whole records are a whole file: nothing in the format says that there were more.
    assert undetected == [first_record]


def test_a_flipped_bit_in_a_compressed_source_is_found(tmp_path: Path) -> None:
    source = write_warc(tmp_path / "a.warc.gz", good_records())
    payload = bytearray(source.read_bytes())
    payload[100] ^= 1  # within the compressed bytes of the first record
    source.write_bytes(payload)
    with pytest.raises(DataError, match=r"a\.warc\.gz is truncated or damaged"):
        prepare(config(tmp_path, source), words, DIGEST, silent)


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    source = write_warc(tmp_path / "a.warc.gz", good_records())
    calls = []

    def failing(text: str) -> list[str]:
        calls.append(text)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return text.split()

    with pytest.raises(KeyboardInterrupt):
        prepare(config(tmp_path, source), failing, DIGEST, silent)
    cut = tmp_path / "b.warc"
    cut.write_bytes(b"".join(good_records())[:-900] + b"\r\n\r\n")
    with pytest.raises(DataError, match="bytes; fetch the file again"):
        prepare(config(tmp_path, source, cut), words, DIGEST, silent)
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == [".shards.work", "a.warc.gz", "b.warc"]  # finished parts, for the next start


def test_a_corpus_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    source = write_warc(tmp_path / "a.warc.gz", good_records())
    with pytest.raises(DataError, match=r"no page .* rejected/too_few_tokens 12.*lower min_chars"):
        prepare(config(tmp_path, source, min_tokens=1000), words, DIGEST, silent)
    images = write_warc(
        tmp_path / "b.warc.gz", [response("https://e.org/", b"x", kind="image/png")]
    )
    with pytest.raises(DataError, match=r"b\.warc\.gz holds no HTML page"):
        prepare(config(tmp_path, source, images), words, DIGEST, silent)
    with pytest.raises(DataError, match=r"there is no source .*missing\.warc\.gz"):
        prepare(config(tmp_path, tmp_path / "missing.warc.gz"), words, DIGEST, silent)
    text = tmp_path / "notes.pdf"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"notes\.pdf is none of \.warc, .*\.parquet"):
        prepare(config(tmp_path, text), words, DIGEST, silent)
    assert not (tmp_path / "shards").exists()


def test_sources_may_be_globs_and_count_once(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_warc(tmp_path / f"{name}.warc.gz", good_records(1))
    settings = config(tmp_path, tmp_path / "*.warc.gz", tmp_path / "a.warc.gz")
    names = [Path(path).name for path in settings.source_files()]
    assert names == ["a.warc.gz", "b.warc.gz"]


def test_config_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "prep.yaml"
    good = "sources: [a.warc.gz]\noutput: out\ntokenizer: words\n"
    path.write_text(good + "min_tokens: 32\n")
    loaded = PrepConfig.load(path)
    assert (loaded.sources, loaded.output, loaded.min_tokens) == (
        ("a.warc.gz",),
        Path("out"),
        32,
    )
    for text, message in [
        (good + "min_token: 3\n", "min_token: no such key; did you mean `min_tokens`"),
        ("output: out\ntokenizer: words\n", "sources: required"),
        (good.replace("[a.warc.gz]", "[]"), "sources:"),
        (good + "min_tokens: 0\n", "min_tokens:"),
        (good + "min_chars: 10\nmax_chars: 5\n", "lower min_chars"),
        ("- a\n", "expected keys"),
        ("a: [", "not YAML"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            PrepConfig.load(path)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="no preparation config"):
        PrepConfig.load(tmp_path / "absent.yaml")


def test_http_encodings_are_undone_and_a_cut_body_is_rejected(tmp_path: Path) -> None:
    packed = gzip.compress(page(1))
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(page(2)), page(2))
    latin = "<p>café</p>".encode("latin-1")
    source = write_warc(
        tmp_path / "a.warc.gz",
        [
            response("zip", packed, headers="Content-Encoding: gzip\r\n"),
            response("chunks", chunked, headers="Transfer-Encoding: chunked\r\n"),
            response("latin", latin, kind="text/html; charset=ISO-8859-1"),
            response("odd", "<p>é</p>".encode(), kind="text/html; charset=nonsense"),
            response("cut", packed[:-20], headers="Content-Encoding: gzip\r\n"),
            response("new", packed, headers="Content-Encoding: unheard-of\r\n"),
            response(
                "bomb", gzip.compress(b" " * (17 << 20)), headers="Content-Encoding: gzip\r\n"
            ),
        ],
    )
    assert [(p.url, p.html, p.reason) for p in pages(str(source))] == [
        ("zip", page(1).decode(), ""),
        ("chunks", page(2).decode(), ""),
        ("latin", "<p>café</p>", ""),
        ("odd", "<p>é</p>", ""),
        ("cut", None, "undecodable"),
        ("new", None, "undecodable"),
        ("bomb", None, "page_too_large"),
    ]


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resiliparse.parse.html", None)
    with pytest.raises(ConfigError, match=r"pip install 'rntp\[prep\]'"):
        extract("<p>hello</p>")


def test_the_sample_corpus_reads_as_prose(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "data_prep" / "sample" / "sample.warc.gz"
    corpus = prepare(config(tmp_path, sample, min_tokens=96), words, DIGEST, silent)
    assert corpus.funnel["pages"] == corpus.num_docs == 180
    texts = [corpus.read(n).text for n in range(corpus.num_docs)]
    sites = {str(corpus.read(n).metadata["url"]).split("/")[2] for n in range(corpus.num_docs)}
    assert len(sites) == 6
    characters = sum(len(text) for text in texts)
    lines = [line for text in texts for line in text.split("\n")]
    assert sum(len(line) for line in lines if len(line) >= 100) > 0.6 * characters
    assert not any(line.startswith(("Table of Contents", "Prev\t", "Prev ")) for line in lines)
    with tarfile.open(tmp_path / "shards" / "shard-00000.tar") as tar:
        assert len(tar.getnames()) == 360
