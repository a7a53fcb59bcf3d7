"""The planted web: linked pages of which only some regions can be learnt from by thinking.

A page is a pure function of its path, so the web has no end where a calendar has none. Regions of
one site, all below `/`:

    desks/         planted pages with many questions that take two to four look-ups: thinkable
    signs/         the same with other names of the pages, in numbered folders
    lists/ rolls/  planted pages whose trails take one look-up: easy
    hours/         opening hours, the same everywhere: to be remembered
    talk/          sentences of a few words: nothing to think about
    draws/ codes/ tickets/    numbers: noise of the same look
    mirror/        pages of the corpus that the run began with, word for word
    calendar/      a page a day, without end, each linking to the next and to others
    trap/          links to other hosts and schemes, redirects without end and off the site, a body
                   without end, a body of a byte a second

Each region has a start page that links to its first pages, and each page to the next ones; what
the links of `trap/` do is the server's part (`serve.py`).
"""

import html
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))

import pages

SEED = 23
REGIONS = (
    *("lists", "draws", "hours", "calendar", "desks", "codes", "rolls", "mirror", "talk", "signs"),
    *("tickets", "trap"),
)
LEARNABLE = ("desks", "signs")
TRAPS = ("mirror", "calendar", "trap")
SIZE = 400  # pages of a region that ends
FAN = 6  # links of a page to later ones
QUESTIONS = 10
_NAMES = ("desks", "signs", "lists", "rolls", "draws", "codes", "tickets", "hours", "talk", "base")
_OFFSET = {name: 100_000 * n for n, name in enumerate((*_NAMES, "held"))}


def thinkable(index: int, region: str = "base") -> pages.Page:
    """A page with many questions. region: the same index gives another page in each."""
    return pages.make_page(SEED, _OFFSET[region] + index, questions=QUESTIONS, trails=0)


def easy(index: int, region: str) -> pages.Page:
    """A page of single look-ups."""
    return pages.make_page(SEED, _OFFSET[region] + index, questions=0, trails=6)


def lines(index: int, region: str) -> str:
    """A page of noise, of facts, or of talk."""
    counter = [0, 0, 1, _OFFSET[region] + index]
    writer = pages.Writer(np.random.Generator(np.random.Philox(key=SEED, counter=counter)))
    writer.choose(pages.PLACES, "")
    writer.choose(pages.KINDS)
    writer.put("\nHome | News | Contact\n")
    for _ in range(12):
        if region == "talk":
            writer.put(pages.MUSINGS[int(writer.random.integers(len(pages.MUSINGS)))] + ".\n")
        elif region == "hours":
            pages._extras(writer)
        else:
            digits = " ".join(str(d) for d in writer.random.integers(10, size=5))
            writer.put(f"Reference {digits}.\n")
    return "".join(writer.tokens)


def day(number: int) -> str:
    """A page of the calendar: long enough to be kept, other words every day, and nothing in it."""
    draw = np.random.Generator(np.random.Philox(key=SEED, counter=[0, 0, 2, number]))
    lines = [pages.MUSINGS[i] for i in draw.integers(len(pages.MUSINGS), size=14)]
    digits = " ".join(str(d) for d in draw.integers(10, size=8))
    return f"Market rota\nHome | News | Contact\nReference {digits}.\n" + ".\n".join(lines) + ".\n"


def text_of(region: str, number: int) -> str:
    """The text of a page. Raises KeyError for a region without texts."""
    if region in LEARNABLE:
        return thinkable(number, region).text
    if region in ("lists", "rolls"):
        return easy(number, region).text
    if region == "mirror":
        return thinkable(number).text
    return day(number) if region == "calendar" else lines(number, region)


def page_html(text: str, links: list[str]) -> str:
    """A page of a site around a text."""
    anchors = "".join(f'<li><a href="{html.escape(link)}">more</a></li>' for link in links)
    return (
        f"<!doctype html><html><head><title>{text.partition(chr(10))[0]}</title></head><body>"
        f"<nav><ul>{anchors}</ul></nav><pre>{html.escape(text)}</pre></body></html>"
    )


def path_of(region: str, number: int) -> str:
    """The path of a page of a region."""
    if region == "calendar":
        return f"/calendar/{2026 + number // 372}/{number // 31 % 12 + 1}/{number % 31 + 1}.html"
    if region == "signs":
        return f"/signs/{number // 50}/{number}.html"
    return f"/{region}/{number}.html"


def number_of(path: str) -> tuple[str, int]:
    """Region and number of a path of `path_of`. Raises ValueError for any other."""
    region, *parts = path.strip("/").removesuffix(".html").split("/")
    if region == "calendar":
        year, month, date = map(int, parts)
        return region, (year - 2026) * 372 + (month - 1) * 31 + date - 1
    return region, int(parts[-1])


def site_page(path: str) -> str | None:
    """The HTML below a path, or None where there is none. Paths of `trap/` but its start are the
    server's."""
    if path in ("/", "/index.html"):
        return page_html("Home", [f"/{region}/index.html" for region in REGIONS])
    region, _, rest = path.strip("/").partition("/")
    if region == "trap":
        return page_html("Home", trap_links()) if rest == "index.html" else None
    if rest == "index.html" and region in REGIONS:
        return page_html("Home", [path_of(region, n) for n in range(FAN)])
    try:
        region, number = number_of(path)
    except ValueError:
        return None
    if region not in REGIONS or (region != "calendar" and not 0 <= number < SIZE):
        return None
    later = [FAN * number + k for k in range(1, FAN + 1)]
    if region == "calendar":
        later = [number + 1, number + 31, number + 372, number + 3720]
    known = [n for n in later if region == "calendar" or n < SIZE]
    return page_html(text_of(region, number), [path_of(region, n) for n in known])


def trap_links() -> list[str]:
    """What a hostile page links to."""
    return [
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:text/html,<a href=x>x</a>",
        "mailto:desk@planted.example",
        "http://127.0.0.1:9/",
        "http://listed.example@other.example/",
        "//other.example/page.html",
        "/desks/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/trap/loop.html",
        "/trap/away.html",
        "/trap/huge.html",
        "/trap/slow.html",
        "/trap/image.html",
        "/trap/missing.html",
    ]
