"""The index of `search`: what is found, how it grows, and that no kill sets it back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import tiny_tokenizer

from rntp.cli import main
from rntp.data import Manifest, ShardWriter
from rntp.errors import ConfigError, DataError
from rntp.model.tokenizer import encode, tokenizer_digest
from rntp.tools import REGISTRY, Page, Withheld
from rntp.tools.cache import Cache
from rntp.tools.desk import Desk
from rntp.tools.index import build as build_module
from rntp.tools.index.bm25 import Reader, Writer
from rntp.tools.index.build import build, by_tokens
from rntp.tools.index.store import Facts, Store

ANIMALS = [
    "otter",
    "badger",
    "heron",
    "weasel",
    "kestrel",
    "stoat",
    "magpie",
    "lizard",
    "beetle",
    "salmon",
]
NOWHERE = Page("nowhere", 0, "", ())
NOTHING = Withheld("nowhere", "", "", "")


def texts(count: int, first: int = 0) -> dict[str, str]:
    """Pages about animals, one of them the animal of the page."""
    return {
        f"page-{n}": f"Page {n} tells of the {ANIMALS[n % 10]} number {n}. "
        + f"It lives in valley v{n}x and eats what grows there, day after day. " * (n % 4 + 1)
        for n in range(first, first + count)
    }


def corpus_of(folder: Path, pages: dict[str, str], spec: str = "tiny") -> Manifest:
    tokenizer = tiny_tokenizer()
    with ShardWriter(
        folder,
        shard_bytes=1 << 20,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec=spec,
        prep_digest="0" * 64,
    ) as shards:
        for name, text in pages.items():
            facts = {"url": "", "title": name, "source": ""}
            shards.add(name, text, facts, len(encode(tokenizer, text)))
        return shards.finish({"pages": len(pages), "kept": len(pages)})


def index(corpus: Manifest, folder: Path, size: int = 32) -> Facts:
    return build(corpus, folder, by_tokens(tiny_tokenizer(), size), piece_tokens=size)


def found(folder: Path, query: str, limit: int = 5) -> list[str]:
    search = REGISTRY["search"](index=folder)
    quotes = [quote for quote, _ in zip(search(query, NOWHERE), range(limit), strict=False)]
    return [quote.document_id for quote in quotes]


def test_texts_are_cut_every_so_many_tokens() -> None:
    text = next(iter(texts(1).values())) + "naïve 東京"
    tokenizer = tiny_tokenizer()
    ends = by_tokens(tokenizer, 16)(text)
    pieces = [text[a:b] for a, b in pairwise([0, *ends])]
    assert "".join(pieces) == text
    assert [len(encode(tokenizer, piece)) for piece in pieces[:3]] == [16] * 3
    assert by_tokens(tokenizer, 10_000)(text) == [len(text)]
    with pytest.raises(ConfigError, match="at least 1 token"):
        by_tokens(tokenizer, 0)


def test_pieces_are_found_by_their_words(tmp_path: Path) -> None:
    facts = index(corpus_of(tmp_path / "corpus", texts(40)), tmp_path / "index")
    assert facts.extent.documents == 40
    assert facts.extent.pieces > 80
    assert found(tmp_path / "index", "valley V17X?", 1) == ["page-17"]
    assert set(found(tmp_path / "index", "the heron", 4)) <= {f"page-{n}" for n in (2, 12, 22, 32)}
    assert found(tmp_path / "index", "unheard") == found(tmp_path / "index", "…") == []
    # Signs of a query language are none here.
    assert found(tmp_path / "index", '+v17x -page "(', 1) == ["page-17"]


def test_a_quote_is_a_piece_and_knows_its_document(tmp_path: Path) -> None:
    pages = texts(10)
    index(corpus_of(tmp_path / "corpus", pages), tmp_path / "index")
    quote = next(iter(REGISTRY["search"](index=tmp_path / "index")("v7x grows", NOWHERE)))
    assert quote.document() == pages["page-7"]
    assert quote.text in pages["page-7"]
    assert len(encode(tiny_tokenizer(), quote.text)) <= 32


def test_an_index_grows_and_passes_over_what_it_has(tmp_path: Path) -> None:
    first, second = texts(20), texts(30, 10)
    one, two = corpus_of(tmp_path / "one", first), corpus_of(tmp_path / "two", second)
    index(one, tmp_path / "grown")
    facts = index(two, tmp_path / "grown")
    assert facts.extent.documents == 40
    assert facts.extent.read == {one.digest: 20, two.digest: 30}
    assert index(two, tmp_path / "grown") == facts
    whole = index(corpus_of(tmp_path / "both", first | second), tmp_path / "whole")
    assert facts.digest == whole.digest
    for query in ("heron", "v35x valley", "number 3"):
        assert found(tmp_path / "grown", query) == found(tmp_path / "whole", query)
    assert index(corpus_of(tmp_path / "x", texts(21)), tmp_path / "y").digest != facts.digest


def small_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "COMMIT_BYTES", 1000)


def stop_at(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Fail in the third commit: before its first step, or behind one of them."""
    calls = {"n": 0}

    def failing(original: Callable[..., object], after: bool) -> Callable[..., object]:
        def call(*given: object, **more: object) -> object:
            calls["n"] += 1
            if calls["n"] == 3 and not after:
                raise KeyboardInterrupt
            result = original(*given, **more)
            if calls["n"] == 3:
                raise KeyboardInterrupt
            return result

        return call

    if place == "before the texts":
        monkeypatch.setattr(
            build_module.Builder, "commit", failing(build_module.Builder.commit, False)
        )
    elif place == "behind the texts":
        monkeypatch.setattr(build_module.os, "fsync", failing(os.fsync, True))
    else:
        monkeypatch.setattr(Writer, "commit", failing(Writer.commit, place == "behind the words"))


@pytest.mark.parametrize(
    "place", ["before the texts", "behind the texts", "before the words", "behind the words"]
)
def test_a_build_goes_on_from_wherever_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    corpus = corpus_of(tmp_path / "corpus", texts(40))
    whole = index(corpus, tmp_path / "whole")
    small_commits(monkeypatch)
    with monkeypatch.context() as patch:
        stop_at(patch, place)
        with pytest.raises(KeyboardInterrupt):
            index(corpus, tmp_path / "index")
    if place in ("before the words", "behind the words"):
        with pytest.raises(DataError, match="cut short; start it again"):
            Store(tmp_path / "index")
    facts = index(corpus, tmp_path / "index")
    assert (facts.digest, facts.extent) == (whole.digest, whole.extent)
    for name in ("text.bin", "pieces.bin", "documents.bin"):
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for query in ("heron", "v35x valley", "grows there"):
        assert found(tmp_path / "index", query) == found(tmp_path / "whole", query)


PROGRAM = """
import sys, time
from rntp.data import Manifest
from rntp.tools.index import build as module
from test_index import index
module.COMMIT_BYTES = 1000
commit = module.Builder.commit
def slowly(self):
    commit(self)
    print(self.facts.extent.documents, flush=True)
    time.sleep(0.02)
module.Builder.commit = slowly
from pathlib import Path
index(Manifest.load(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_kill_minus_nine(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", texts(200))
    whole = index(corpus, tmp_path / "whole")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "corpus"), str(tmp_path / "index")]
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    kills = 0
    for _ in range(3):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()
            time.sleep(0.01 * kills)
            process.send_signal(signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3
    facts = index(corpus, tmp_path / "index")
    assert facts.extent == whole.extent
    assert set(found(tmp_path / "index", "v150x")) == {"page-150"}


def test_one_build_at_a_time(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "bm25")
    with pytest.raises(DataError, match="wait for the other process"):
        Writer(tmp_path / "bm25")
    writer.close()
    Writer(tmp_path / "bm25").close()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", texts(5))
    with pytest.raises(DataError, match="rntp data index CORPUS --out"):
        Store(tmp_path / "index")
    index(corpus, tmp_path / "index")
    with pytest.raises(DataError, match="built with piece_tokens 32"):
        index(corpus, tmp_path / "index", 16)
    path = tmp_path / "index" / "index.json"
    good = path.read_text()
    path.write_text(good.replace('"piece_tokens": 32', '"piece_tokens": 33'))
    with pytest.raises(DataError, match="was edited"):
        Store(tmp_path / "index")
    path.write_text(good.replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="format 2 and this program reads 1"):
        Store(tmp_path / "index")
    path.write_text(good[:50])
    with pytest.raises(DataError, match="damaged"):
        Store(tmp_path / "index")
    path.write_text(good)
    text = tmp_path / "index" / "text.bin"
    text.write_bytes(text.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"text\.bin has"):
        Store(tmp_path / "index")
    with pytest.raises(DataError, match=r"text\.bin has"):
        index(corpus, tmp_path / "index")


def test_strict_search_gives_neither_page_nor_mirror_nor_what_comes_next(tmp_path: Path) -> None:
    page = texts(1)["page-0"] + "Its den is behind the third willow by the old stone bridge today."
    pages = texts(30, 1) | {
        "itself": page,
        "mirror": "Mirrored for you: " + page + " All rights reserved.",
        "quoting": "Somebody has written: Its den is behind the third willow by the old stone "
        "bridge today, I hear. " + " ".join(f"Aside {n} of mine." for n in range(20)),
        "knowing": "The den of the otter number 0 lies behind a willow.",
    }
    index(corpus_of(tmp_path / "corpus", pages), tmp_path / "index")
    at = page.index("is behind")
    withheld = Withheld("itself", page, page[:at], page[at : at + 40])
    asked = "search den otter number 0 is behind the third willow by the old stone bridge"

    def outcome(call: str = asked, **settings: float) -> tuple[str, dict[str, int]]:
        tool = REGISTRY["search"](index=tmp_path / "index", **settings)
        desk = Desk({"search": tool}, Cache(None))
        (found,) = desk.settle([desk.ask(call, NOWHERE, withheld)], wait=True)
        desk.close()
        assert found is not None
        return found.text, found.withheld

    text, reasons = outcome()
    assert pages["knowing"].startswith(text)
    assert len(text) > 30
    assert reasons["same_page"] >= 1
    assert reasons["continuation"] + reasons["near_duplicate"] >= 2
    # The other author's words hold what comes next; by near-duplicates alone they pass.
    quoting = "search third willow by the old stone bridge"
    assert "old stone" not in outcome(quoting)[0]
    assert "old stone" in outcome(quoting, ngram=0, near=0.5)[0]
    assert outcome(ngram=0, near=2)[1] == {"same_page": 1}


def test_results_do_not_depend_on_the_page_but_by_what_is_withheld(tmp_path: Path) -> None:
    index(corpus_of(tmp_path / "corpus", texts(20)), tmp_path / "index")
    desk = Desk({"search": REGISTRY["search"](index=tmp_path / "index")}, Cache(None))
    pages = [NOTHING, Withheld("page-17", texts(20)["page-17"], "", "")]
    asked = [desk.ask("search v17x", NOWHERE, withheld) for withheld in pages]
    one, other = desk.settle(asked, wait=True)
    assert one is not None
    assert "v17x" in one.text
    assert other is not None
    assert other.failure == "nothing_found"
    assert other.withheld["same_page"] >= 1
    desk.close()


def test_words_before_the_position_are_asked_for_beside_the_arguments(tmp_path: Path) -> None:
    index(corpus_of(tmp_path / "corpus", texts(20)), tmp_path / "index")
    page = Page("page-3", 9, "It eats in v17x and then it\nsleeps", ())

    def first(arguments: str, page: Page = page, **settings: int) -> str:
        search = REGISTRY["search"](index=tmp_path / "index", **settings)
        return next((quote.document_id for quote in search(arguments, page)), "nothing")

    plain, near = (REGISTRY["search"](index=tmp_path / "index", before=n) for n in (0, 5))
    assert (plain.reads_page, near.reads_page) == (False, True)
    assert plain.digest != near.digest
    assert first("") == "nothing"
    assert first("", before=5) == "page-17"
    assert first("", before=4) != "page-17"  # of the page's last words that one is the fifth
    assert first("v12x lizard valley v12x", before=5) in ("page-12", "page-17")
    assert first("v12x", Page("page-3", 0, "", ()), before=5) == "page-12"
    # Another page is another call, though the arguments are the same.
    desk = Desk({"search": near}, Cache(None))
    asked = [desk.ask("search", p, NOTHING) for p in (page, Page("page-3", 2, "In v12x", (7, 8)))]
    texts_found = [outcome.text for outcome in desk.settle(asked, wait=True) if outcome]
    desk.close()
    assert "v17x" in texts_found[0]
    assert "v12x" in texts_found[1]
    with pytest.raises(ConfigError, match="search before -1"):
        REGISTRY["search"](index=tmp_path / "index", before=-1)


def test_the_command(
    tmp_path: Path, model_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus_of(tmp_path / "corpus", texts(12), str(model_folders["llama"]))
    command = ["data", "index", str(tmp_path / "corpus"), "--out", str(tmp_path / "index")]
    main([*command, "--piece-tokens", "16", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["documents"] == 12
    assert facts["pieces"] == Store(tmp_path / "index").facts.extent.pieces
    assert facts["digest"] == Store(tmp_path / "index").facts.digest
    assert Reader(tmp_path / "index" / "bm25").num_pieces == facts["pieces"]
    main([*command, "--piece-tokens", "16"])
    assert "documents" in capsys.readouterr().out
