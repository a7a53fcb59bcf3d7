"""The slow extractor in its child process, and pages that would keep an extractor for ever."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="extra `prep`")

from rntp_data_prep import PrepConfig, prepare
from rntp_data_prep.cleaner import Cleaner
from rntp_data_prep.extract import MAX_DEPTH, Unextractable, extract
from rntp_data_prep.sources import pages as read_pages
from rntp_data_prep.texts import page_text

from rntp.data.manifest import Manifest
from rntp.errors import ConfigError

SAMPLE = str(Path(__file__).parents[2] / "data_prep" / "sample" / "sample.warc.gz")


def nested(depth: int, name: str = "div") -> str:
    """Elements in elements, `depth` in all with <html> and <body>."""
    inner = depth - 2
    text = "The text in the middle of it. " * 20
    return f"<html><body>{f'<{name}>' * inner}{text}{f'</{name}>' * inner}</body></html>"


def tables(rows: int) -> str:
    """A flat page that trafilatura takes long for: pruned link by link."""
    cells = "".join(
        f"<tr><td><a href='/{n}'>link {n}</a></td><td>x{n}</td></tr>" for n in range(rows)
    )
    return f"<html><body><article><table>{cells}</table></article></body></html>"


def run(folder: Path, pages: list[str], **changes: Any) -> Manifest:
    source = folder / "a.jsonl"
    rows = [{"url": f"u{n}", "html": page} for n, page in enumerate(pages)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {
        "sources": [str(source)],
        "output": folder / "shards",
        "tokenizer": "words",
        "min_tokens": 20,
        "min_chars": 50,
        "workers": 1,
        **changes,
    }
    return prepare(PrepConfig.model_validate(facts), str.split, "d" * 16, lambda _: None)


def ledger(folder: Path) -> dict[str, str]:
    lines = (folder / "shards" / "rejects.jsonl").read_text().splitlines()
    return {entry["url"]: entry["reason"] for entry in map(json.loads, lines)}


def test_deep_pages_are_refused_before_they_cost_time() -> None:
    _, text = extract(nested(MAX_DEPTH))
    assert "in the middle" in text
    begin = time.monotonic()
    for page in (nested(MAX_DEPTH + 1), nested(200_000), nested(50_000, "b")):
        with pytest.raises(Unextractable, match="too_deep"):
            extract(page)
    assert time.monotonic() - begin < 10  # without the limit, 8,000 take 2 s and 200,000 hours
    deep = next(read_pages(SAMPLE))
    clean = Cleaner()
    assert "\n" in page_text(deep, clean).text
    with pytest.raises(Unextractable, match="too_deep"):
        page_text(type(deep)(deep.url, deep.source, nested(9_000)), clean)


def test_a_deep_page_is_in_the_ledger(tmp_path: Path) -> None:
    manifest = run(tmp_path, [nested(9_000), nested(20)])
    assert manifest.funnel["rejected/too_deep"] == 1
    assert ledger(tmp_path) == {"u0": "too_deep"}


def test_real_pages_by_trafilatura(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura", reason="extra `prep-hq`")
    real = [page for page in read_pages(SAMPLE) if page.html][:12]
    pages = [page.html or "" for page in real]
    best = run(tmp_path, pages, extractor="trafilatura")
    (tmp_path / "b").mkdir()
    quick = run(tmp_path / "b", pages)
    assert best.funnel["pages"] == quick.funnel["pages"] == 12
    assert best.num_docs >= 9
    found, others = ([m.read(n) for n in range(m.num_docs)] for m in (best, quick))
    texts = {d.metadata["url"]: d.text for d in found}
    same = [url for url in (d.metadata["url"] for d in others) if url in texts]
    assert len(same) >= 9
    assert all(document.metadata["title"] for document in found)
    by_quick = {d.metadata["url"]: set(d.text.split()) for d in others}
    # Another text of the same page: most words in common, and not the same one.
    for url in same:
        words = set(texts[url].split())
        assert len(words & by_quick[url]) > 0.5 * len(words), url
    assert [texts[url] for url in same] != [d.text for d in others if d.metadata["url"] in same]
    assert best.digest != quick.digest


@pytest.mark.slow
def test_a_page_over_the_limit_is_dropped_and_the_next_one_read(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura", reason="extra `prep-hq`")
    real = next(page for page in read_pages(SAMPLE) if page.html).html or ""
    begin = time.monotonic()
    pages = [real, tables(150_000), nested(9_000), real.replace("the", "that")]
    manifest = run(tmp_path, pages, extractor="trafilatura", extraction_s=2.0)
    assert time.monotonic() - begin < 60
    assert ledger(tmp_path) == {"u1": "extraction_timeout", "u2": "too_deep"}
    assert manifest.funnel["rejected/extraction_timeout"] == 1
    assert manifest.num_docs == 2


@pytest.mark.slow
def test_a_child_that_dies_costs_nothing() -> None:
    pytest.importorskip("trafilatura", reason="extra `prep-hq`")
    child = Cleaner("trafilatura", limit_s=30.0)
    page = "<html><head><title>A title</title></head><body><article><p>" + "Some text. " * 40
    title, text, _ = child(page, is_html=True)
    assert title == "A title"
    assert text.startswith("Some text. Some")
    process = child._process
    assert process is not None
    process.kill()
    process.wait()
    # It may have been ended by others, so the page is tried once more.
    assert child(page, is_html=True) == (title, text, 0)
    child.close()


def test_a_missing_trafilatura_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trafilatura.py").write_text("raise ImportError('not here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.delitem(__import__("sys").modules, "trafilatura", raising=False)
    with pytest.raises(ConfigError, match=r"needs trafilatura, .*rntp\[prep-hq\]"):
        Cleaner("trafilatura", limit_s=5.0)("<p>x", is_html=True)
    with pytest.raises(ConfigError, match=r"needs trafilatura, .*rntp\[prep-hq\]"):
        run(tmp_path, [nested(20)], extractor="trafilatura")
