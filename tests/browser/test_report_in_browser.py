"""The report in a real browser: what a reader sees, types and prints; what a text may not do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import PROSE, fake_compare, fake_run

from rntp.report.numbers import signed
from rntp.report.page import render
from rntp.report.runs import load_runs
from rntp.runtime.files import write_text_atomic

pytestmark = pytest.mark.browser

CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
LEAST_CONTRAST = 4.5  # WCAG 2 AA for text of normal size
HOSTILE = (
    "<script>document.title='taken over'</script></script></style></template></noscript>--><!--"
    "<img/src=http://127.0.0.1:9/x/onerror=alert(1)> javascript:alert(2) "
    "<a\u00a0href='javascript:alert(3)'>x</a> \u202e\u2066\u200f \x1b[31m\x1b]0;red\x07 {{7*7}} "
    "{%\u00a0raise\u00a0%} \u2028 \x00 \ud800 &lt;b&gt;"
)
GIANT = "w" * 1_000_000


def written(out: Path, *run_dirs: Path) -> Path:
    html = render(load_runs(run_dirs), fake_compare)
    write_text_atomic(out, html.encode("utf-8", "replace").decode("utf-8"))
    return out


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return written(folder / "report.html", fake_run(folder / "run"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    run = fake_run(
        folder / "run",
        name=f"{HOSTILE} {GIANT}",
        text=f"{PROSE} {HOSTILE} {GIANT} {PROSE}{HOSTILE} {HOSTILE}",
        thought=f"{HOSTILE} {GIANT}",
        document_id=f"{HOSTILE}{GIANT}",
        steps=2,
        docs=1,
    )
    return written(folder / "report.html", run)


def overflow(page: Any) -> int:
    """How many pixels the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def rows(page: Any) -> list[str]:
    return page.locator("#thought-rows .t-text").all_inner_texts()


def count(page: Any) -> str:
    """What is said of the number of thoughts, once a filter has been at work."""
    page.wait_for_timeout(150)
    return page.locator("#f-count").inner_text()


def thoughts(page: Any) -> list[dict]:
    """The thoughts in the page's data, each with its place."""
    data = json.loads(page.locator("#thought-data").text_content())
    return [{**thought, **data["places"][thought["place"]]} for thought in data["thoughts"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400, 1920])
def test_it_opens_quietly_fits_and_can_be_read(
    visit: Callable[..., Any], report: Path, width: int, scheme: str
) -> None:
    opened = visit(report, width, scheme)
    opened.page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert overflow(opened.page) <= 0
    assert opened.errors == []
    assert opened.requests == [report.as_uri()]
    contrast = opened.page.evaluate(CONTRAST)
    assert contrast["seen"] > 300
    assert contrast["worst"][0] >= LEAST_CONTRAST, contrast["worst"]
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("width", [1400, 1920])
def test_a_wide_window_is_used(visit: Callable[..., Any], report: Path, width: int) -> None:
    page = visit(report, width).page
    box = {
        name: page.locator(name).first.bounding_box()
        for name in ("main", ".reading", ".panel", ".charts", ".halves > div")
    }
    assert box["main"]["width"] > 0.85 * width
    # The thoughts of the first position stand open beside the text, not under it.
    assert box[".panel"]["x"] > box[".reading"]["x"] + box[".reading"]["width"]
    assert box[".panel"]["x"] + box[".panel"]["width"] > 0.9 * width
    assert box[".halves > div"]["x"] > width / 2.2
    columns = page.evaluate(
        "getComputedStyle(document.querySelector('.charts')).gridTemplateColumns.split(' ').length"
    )
    assert columns >= 3


@pytest.mark.parametrize("width", [420, 1400])
def test_thoughts_open_by_keyboard(visit: Callable[..., Any], report: Path, width: int) -> None:
    page = visit(report, width).page
    page.locator(".context summary").first.focus()
    page.keyboard.press("Tab")  # from the summary to the first number: tokens are passed over
    page.keyboard.press("Tab")
    mark = page.evaluate("document.activeElement.id")
    assert re.fullmatch(r"r0c0p2t", mark)
    above = page.evaluate("window.scrollY")
    page.keyboard.press("Enter")
    panel = page.locator(".panel:target")
    assert panel.is_visible()
    assert "before training" in panel.inner_text()
    assert panel.locator("blockquote").count() == 4
    # The text stays where it was, so that both can be read.
    assert page.locator(f"#{mark}").bounding_box()["y"] >= 0
    assert abs(page.evaluate("window.scrollY") - above) < 450
    page.keyboard.press("Escape")
    assert page.locator(".panel:target").count() == 0
    assert page.evaluate("document.activeElement.id") == mark


def test_thoughts_are_searched_filtered_and_sorted(visit: Callable[..., Any], report: Path) -> None:
    page = visit(report).page
    known = thoughts(page)
    assert len(known) == 24 * 16
    assert count(page) == "384 of 384 thoughts"
    assert len(rows(page)) == 40
    page.locator("#f-more").click()
    assert len(rows(page)) == 80

    best = max(known, key=lambda t: t["gain"])
    shown = page.locator("#thought-rows tr").first
    assert shown.locator(".t-gain").inner_text() == signed(best["gain"])
    assert shown.locator(".t-step").inner_text() == str(best["step"])
    assert shown.locator(".cell").all_inner_texts() == best["tokens"]

    page.locator("#f-text").fill("GUILDS answered")
    guilds = [t for t in known if "guilds" in t["text"].lower() and "answered" in t["text"]]
    assert 0 < len(guilds) < 100
    assert count(page) == f"{len(guilds)} of 384 thoughts"
    page.locator("#f-text").fill("no such words anywhere")
    assert count(page) == "0 of 384 thoughts: none fits; widen a range, or reset"
    page.locator("#f-reset").click()
    assert count(page) == "384 of 384 thoughts"

    page.locator("#f-low").fill("0.05")
    page.locator("#f-closed").select_option("closed")
    page.locator("#f-step-low").fill("20")
    fit = [t for t in known if t["gain"] >= 0.05 and t["closed"] and t["step"] >= 20]
    assert 0 < len(fit) < 40
    assert count(page) == f"{len(fit)} of 384 thoughts"
    assert len(rows(page)) == len(fit)

    page.locator("#f-reset").click()
    page.locator("#f-measure").select_option("scheme:exact_prefix")
    page.locator("#f-high").fill("-1.5")
    at = json.loads(page.locator("#thought-data").text_content())["schemes"].index("exact_prefix")
    low = [t for t in known if t["rewards"][at] <= -1.5]
    assert 0 < len(low) < 384
    assert count(page) == f"{len(low)} of 384 thoughts"

    page.locator("#f-reset").click()
    page.locator("#f-sort").select_option("step")
    page.locator("#f-order").select_option("low")
    count(page)
    steps = [int(text) for text in page.locator("#thought-rows .t-step").all_inner_texts()]
    assert steps == [1] * 16 + [2] * 16 + [3] * 8
    page.locator("#f-length-low").fill("15")
    assert count(page).startswith("0 of 384")


def test_a_point_of_a_curve_leads_to_the_thoughts_of_its_step(
    visit: Callable[..., Any], report: Path
) -> None:
    opened = visit(report)
    page = opened.page
    strip = page.locator(".charts figure").nth(2).locator('a[href="#step-12"] rect')
    assert "step 12; " in strip.locator("title").text_content()
    strip.click()
    assert count(page) == "16 of 384 thoughts"
    assert set(page.locator("#thought-rows .t-step").all_inner_texts()) == {"12"}
    assert page.locator(".steps [aria-current]").inner_text() == "12"
    in_view = page.locator("#explorer").bounding_box()
    assert -5 <= in_view["y"] < 300
    # The list of steps is the way by keyboard, and an address leads there, too.
    page.locator("#step-3").focus()
    page.keyboard.press("Enter")
    assert set(page.locator("#thought-rows .t-step").all_inner_texts()) == {"3"}
    again = visit(report, fragment="#step-7").page
    assert set(again.locator("#thought-rows .t-step").all_inner_texts()) == {"7"}
    assert opened.errors == []


def test_several_runs_are_told_apart(visit: Callable[..., Any], tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / "a", steps=3), fake_run(tmp_path / "b", name="other", steps=2)]
    page = visit(written(tmp_path / "report.html", *runs)).page
    assert count(page) == "80 of 80 thoughts"
    page.locator("#f-source").select_option(label="other")
    assert count(page) == "32 of 80 thoughts"
    assert set(page.locator("#thought-rows .t-source").all_inner_texts()) == {"other"}


def test_thousands_of_thoughts_are_quick(visit: Callable[..., Any], tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", steps=160, thought="some words of a thought " * 30)
    path = written(tmp_path / "report.html", run)
    assert path.stat().st_size < 4_000_000
    opened = visit(path)
    took = opened.page.evaluate(
        """() => {
          const field = document.getElementById('f-text');
          field.value = 'words';
          const begin = performance.now();
          return new Promise((done) => {
            new MutationObserver(() => done(performance.now() - begin))
              .observe(document.getElementById('f-count'), { childList: true });
            field.dispatchEvent(new Event('input', { bubbles: true }));
          });
        }"""
    )
    assert took < 1500  # ms on shared cores; it is some 100
    assert opened.page.locator("#thought-rows tr").count() == 40
    assert opened.errors == []


def test_without_script_the_best_and_the_worst_are_read(
    visit: Callable[..., Any], report: Path
) -> None:
    page = visit(report, script=False).page
    assert not page.locator("#explorer").is_visible()
    assert page.locator("noscript table.thoughts").count() == 2
    assert page.locator("noscript").first.is_visible()
    page.locator(".mark").first.click()
    assert page.locator(".panel:target").is_visible()


def test_print_opens_the_thoughts(visit: Callable[..., Any], report: Path) -> None:
    opened = visit(report)
    page = opened.page
    closed = page.locator("details:not([open])").count()
    assert closed >= 3
    hidden = page.locator(".panel").nth(6)
    assert not hidden.is_visible()
    page.emulate_media(media="print")
    # By the style alone, and by the script where the browser does not know the style.
    assert hidden.evaluate("e => e.checkVisibility({ contentVisibilityAuto: true })")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator(".filters").is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == closed
    assert len(page.pdf()) > 50_000


@pytest.mark.parametrize("width", [420, 1400])
def test_a_hostile_corpus_runs_nothing_and_breaks_nothing(
    visit: Callable[..., Any], hostile: Path, width: int
) -> None:
    assert hostile.stat().st_size < 1_500_000  # of twenty giant words
    opened = visit(hostile, width, fragment="#r0c0p1")
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert count(page) == "32 of 32 thoughts"
    page.locator("#f-text").fill("<script>document.title=")
    assert count(page) == "32 of 32 thoughts"
    assert "</script></style></template></noscript>" in rows(page)[0]
    assert "{{7*7}}" in rows(page)[0]
    assert page.title().endswith("– rntp report")
    assert page.locator("script").count() == 2
    assert page.locator("img, iframe, main a[href^='javascript']").count() == 0
    assert page.locator(".panel:target").is_visible()
    assert overflow(page) <= 0
    # What follows on the page is neither reversed nor swallowed by what a text left open.
    assert page.locator("#config h2").inner_text() == "Configuration"
    assert opened.requests == [f"{hostile.as_uri()}"]
    assert opened.errors == []


def test_the_policy_lets_no_other_script_run(
    visit: Callable[..., Any], report: Path, tmp_path: Path
) -> None:
    html = report.read_text(encoding="utf-8")
    forced = tmp_path / "forced.html"
    forced.write_text(html.replace("<main>", "<main><script>document.title='taken'</script>", 1))
    opened = visit(forced)
    assert opened.page.title() != "taken"
    assert any("Content Security Policy" in error for error in opened.errors)
