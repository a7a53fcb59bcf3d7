"""Growths over the planted web, with a stand-in for the model: what is chosen, what traps cost, and
that a kill changes nothing."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datatrove", reason="extra `prep`")

from web_of_regions import kind, known_worth

import make_base  # isort: skip
import serve  # isort: skip
import web  # isort: skip
from tokenizer import make_tokenizer  # isort: skip

from rntp.errors import ConfigError, DataError
from rntp.grow.frontier import State
from rntp.grow.growth import READ, Growth, begin
from rntp.grow.ledger import FILE, Ledger
from rntp.grow.pages import Pages
from rntp.grow.segment import Preparer
from rntp.grow.settings import Frontier

PREP = {"min_tokens": 40, "min_chars": 100, "workers": 1}


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[str, list[str]]]:
    with serve.served() as found:
        yield found


def settings(out: Path, site: str, **facts: Any) -> Frontier:
    given = {"output": out, "sites": {site: None}, "pages": 60, "delay_s": 0, "page_s": 5.0}
    given |= {"page_bytes": 200_000, "prep": PREP, "seed": 5, **facts}
    return Frontier.model_validate(given)


def grown(found: Frontier, others: list[Path] | None = None) -> Growth:
    """A growth from its beginning, or from where its ledger ends, to its last page."""
    ledger = Ledger(found.output / FILE)
    begin(found, ledger, Path("run"), lambda: (14, 7))
    state = State(found)
    for row in ledger.rows:
        state.apply(row)
    preparer = Preparer(found, make_tokenizer(), "experiments/planted/base", others or [])
    growth = Growth(found, ledger, state, preparer, known_worth, Pages(found), lambda text: None)
    growth.finish_pages()
    return growth


def requests_by_region(growth: Growth) -> Counter[str]:
    found = Counter[str]()
    for row in growth.rows("page"):
        found[row["region"].partition("/")[2]] += row["requests"]
    return found


def learnable_share(growth: Growth) -> float:
    found = requests_by_region(growth)
    return sum(found[name] for name in web.LEARNABLE) / found.total()


@pytest.mark.slow
def test_twice_the_learnable_pages_of_an_even_frontier_and_traps_cost_a_twentieth(
    site: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = site
    make_base.write_base(tmp_path / "base", 60)  # whose pages the mirror copies
    base = [tmp_path / "base"]
    learnt = grown(settings(tmp_path / "learnt", address, pages=400), base)
    even = grown(settings(tmp_path / "even", address, pages=400, random_share=1.0), base)
    found = requests_by_region(learnt)
    assert 400 <= found.total() <= 403  # the last page may be redirected
    assert sum(found[name] for name in (*web.TRAPS, "etc")) <= 0.05 * found.total()
    assert all(found[name] > 0 for name in web.TRAPS)
    assert learnable_share(learnt) >= 2 * learnable_share(even)
    assert learnable_share(even) > 0.1
    # Nothing starves: every region of noise was looked at again by chance.
    assert all(found[name] >= 3 for name in ("draws", "codes", "tickets", "hours", "talk"))
    # Links to other hosts and schemes were never asked for.
    assert all(path.startswith("/") and "other.example" not in path for path in asked)
    refused = [row for row in learnt.rows("page") if row["refused_links"]]
    assert refused[0]["region"].endswith("/trap")
    reasons = {row["outcome"] for row in learnt.rows("page")} - {READ}
    assert reasons <= {"redirect_loop", "not_allowed", "page_too_large", "too_slow", "http_status"}


def test_the_same_ledger_and_seed_give_the_same_choices_after_a_kill_anywhere(
    site: tuple[str, list[str]], tmp_path: Path
) -> None:
    address = site[0]
    found = settings(tmp_path / "whole", address, pages=40, pages_a_look=8)
    grown(found)
    whole = (found.output / FILE).read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    # After the first row, within a look, just before a look is judged, and in the middle of rows.
    worth = next(n for n, end in enumerate(ends) if b'"row": "worth"' in whole[ends[n - 1] : end])
    cuts = [ends[0], ends[3], ends[worth - 1], ends[worth] + 40, ends[-2] - 1]
    for number, cut in enumerate(cuts):
        again = settings(tmp_path / f"again-{number}", address, pages=40, pages_a_look=8)
        (again.output / "pages").mkdir(parents=True)
        for path in (found.output / "pages").iterdir():
            (again.output / "pages" / path.name).write_bytes(path.read_bytes())
        text = whole[:cut].replace(found.digest().encode(), again.digest().encode())
        (again.output / FILE).write_bytes(text)
        grown(again)
        here = (again.output / FILE).read_bytes()
        assert here.replace(again.digest().encode(), found.digest().encode()) == whole, number
    other = settings(tmp_path / "other", address, pages=40, pages_a_look=8, seed=6)
    grown(other)
    assert (other.output / FILE).read_bytes().count(b"signs") != whole.count(b"signs")


def test_a_segment_holds_what_was_taken_and_not_what_was_there(
    site: tuple[str, list[str]], tmp_path: Path
) -> None:
    found = settings(tmp_path / "one", site[0], pages=40)
    growth = grown(found)
    pages = [row for row in growth.rows("page") if row["outcome"] == READ]
    first = growth._preparer.segment(1, pages, lambda text: None)
    kept = {w["document"] for row in growth.rows("worth") for w in row["pages"]} - {None}
    assert set(first.document_ids) == kept
    assert len(kept) > 15
    assert first.read(0).metadata["url"].startswith(site[0])
    # The next growth of the same web, beside that corpus, takes none of it again.
    others = [found.output / "segments" / "0001"]
    second = grown(settings(tmp_path / "two", site[0], pages=40), others)
    rows = [w for row in second.rows("worth") for w in row["pages"]]
    assert not ({w["document"] for w in rows} & kept)
    assert sum(w["dropped"] == "duplicate" for w in rows) > 5
    # A page that is not what was written is not trained on.
    path = found.output / "pages" / f"{pages[0]['number']:06d}.json"
    path.write_text(path.read_text().replace("a", "b"))
    with pytest.raises(DataError, match="not what was written"):
        growth._preparer.segment(2, pages, lambda text: None)


def test_pools_are_taken_in_order_and_end(tmp_path: Path) -> None:
    texts = {
        "good": [web.thinkable(n, "desks").text for n in range(12)],
        "noise": [web.lines(n, "draws") for n in range(30)],
    }
    for name, rows in texts.items():
        lines = [json.dumps({"body": text, "url": f"u/{n}"}) for n, text in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    found = Frontier.model_validate(
        {
            "output": tmp_path / "out",
            "pools": {name: str(tmp_path / f"{name}.jsonl") for name in texts},
            "pages": 24,
            "pages_a_look": 4,
            "prep": {**PREP, "text_field": "body"},
        }
    )
    growth = grown(found)
    taken = Counter(row["region"] for row in growth.rows("page") if row["outcome"] == READ)
    assert taken["pool:good"] == 12  # all, then no more
    assert [row["outcome"] for row in growth.rows("page")].count("ended") <= 1
    urls = [row["url"] for row in growth.rows("page") if row["region"] == "pool:good"]
    assert urls[:12] == [f"u/{n}" for n in range(12)]
    documents = [w for row in growth.rows("worth") for w in row["pages"]]
    assert all(w["document"] for w in documents)
    assert kind(texts["noise"][0]) == "noise"


def test_an_unfinished_growth_is_not_mixed_with_another(tmp_path: Path) -> None:
    found = settings(tmp_path / "out", "http://127.0.0.1:9/")
    ledger = Ledger(found.output / FILE)
    row = begin(found, ledger, Path("run"), lambda: (14, 7))
    # Later checkpoints are not for it.
    assert begin(found, ledger, Path("run"), lambda: (99, 50)) == row
    with pytest.raises(ConfigError, match="not finished"):
        begin(found, ledger, Path("another"), lambda: (14, 7))
    with pytest.raises(ConfigError, match="not finished"):
        begin(found.model_copy(update={"seed": 1}), ledger, Path("run"), lambda: (14, 7))
    # The budget may change.
    assert begin(found.model_copy(update={"pages": 9}), ledger, Path("run"), lambda: (1, 0)) == row
    ledger.add({"row": "weights", "corpora": []})
    assert begin(found, ledger, Path("run"), lambda: (99, 49))["growth"] == 2
    assert Ledger(found.output / FILE).rows == ledger.rows
    (found.output / FILE).write_bytes(b"no JSON\n" + (found.output / FILE).read_bytes())
    with pytest.raises(DataError, match="restore the ledger"):
        Ledger(found.output / FILE)


def test_settings_name_what_is_wrong(tmp_path: Path) -> None:
    def problem(text: str) -> str:
        path = tmp_path / "frontier.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as found:
            Frontier.load(path)
        return str(found.value)

    start = "output: out\npages: 5\n"
    assert "name one to grow from" in problem(start)
    assert "no address of http or https" in problem(start + "sites: {'file:///etc': null}")
    site = start + "sites: {'http://h/a/': null}\n"
    assert "is not below any prefix" in problem(site + "allow: ['http://h/b/']")
    assert "there is no folder none" in problem(start + "sites: {'http://h/a/': none}")
    assert "leave out tokenizer" in problem(site + "prep: {tokenizer: x}")
    assert "min_tokenz" in problem(site + "prep: {min_tokenz: 4}")
    assert "there are: output" in problem(site + "page: 4")
