"""The running text out of a page.

Parsers and extractors are C code that no page may keep for ever: what takes them more than linear
time is taken out before (`bounded`), refused (MAX_DEPTH), or ended (`rntp_data_prep.child`).
"""

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from html import unescape
from itertools import islice
from typing import Any

from rntp_data_prep.packages import module

MAX_OPTIONS = 1000
"""Options of a page's menus that its parser is given: it takes time by the square of their number,
and no text comes of them."""
MAX_ATTRIBUTES = 256
"""Attributes of a tag, likewise."""

# Elements that hold links between pages rather than the page: HTML's own, and the class names of
# the common documentation generators (Sphinx, DocBook, mdBook, Doxygen).
_SKIPPED_ELEMENTS = [
    "nav",
    "footer",
    "button",
    "[role=navigation]",
    ".navheader",
    ".navfooter",
    ".navigation",
    ".toc",
    ".toctree-wrapper",
    ".sidebar",
    ".sphinxsidebar",
    ".headerlink",
    ".breadcrumbs",
]


# The extractors take time in proportion to the square of the depth: 20,000 nested elements, which
# fit into 200 kB, take minutes. Browsers build no tree deeper than 512.
MAX_DEPTH = 256
_TOO_DEEP = ">".join("*" * (MAX_DEPTH + 1))

_OPTION = re.compile(r"<option(?=[\s/>])[^>]*+>?+[^<]*+(?:</option[^>]*+>)?+", re.I)
# Whatever begins like a tag is taken to its end, or as far as it goes: never looked at twice.
# Comments and elements without tags in them are passed over.
_TAG = re.compile(
    r"""<!--(?:[^-]++|-(?!->))*+
      | <(script|style|textarea|title|xmp|iframe|noembed|noframes)(?=[\s/>])[^>]*+>
        (?:[^<]++|<(?!/\1))*+
      | (<[a-z][^\s/>]*+
         (?:[\s/]++
           |(?:=|[^\s/>=])[^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)?+)*+)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_ATTRIBUTE = re.compile(
    r"""(?:=|[^\s/>=])[^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)?+"""
)
_LONG_TAG = 4096  # characters; a shorter one has few attributes


class Unextractable(Exception):
    """A page that no text comes out of. reason: for the ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def extract(html: str, *, main_content: bool = True) -> tuple[str, str]:
    """(title, text) of a page, both possibly empty. Keeps paragraphs, lists and code blocks.

    main_content: leave out what looks like a site's frame rather than the page.
    Raises Unextractable for elements nested deeper than MAX_DEPTH, and ConfigError where the
    extractor is not installed.
    """
    tree = _tree(html)
    text = module("resiliparse.extract.html2text").extract_plain_text(
        tree, main_content=main_content, alt_texts=False, skip_elements=_SKIPPED_ELEMENTS
    )
    return " ".join((tree.title or "").split()), text


def extract_best(html: str) -> tuple[str, str]:
    """Extract as `extract` does, by trafilatura: cleaner, and some twenty times slower.

    Some pages take it hours: see `rntp_data_prep.child` for a limit.
    """
    trafilatura = module("trafilatura")
    html = bounded(html)
    tree = _tree(html)
    text = trafilatura.extract(
        html, favor_precision=True, include_comments=False, deduplicate=False
    )
    return " ".join((tree.title or "").split()), text or ""


def extractors(name: str) -> Callable[[str], tuple[str, str]]:
    """The extractor of a name. Raises ConfigError where its package is not installed."""
    module("resiliparse.parse.html")
    if name == "resiliparse":
        return extract
    module("trafilatura")
    return extract_best


def extractor_version(extractor: str = "resiliparse") -> str:
    """Versions of the packages whose behaviour decides what a page's text is.

    Raises ConfigError where one is not installed.
    """
    names = list(dict.fromkeys(["chardetng_py", "resiliparse", extractor]))
    for name in names:
        module(name)
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def bounded(html: str) -> str:
    """A page without the options of its menus beyond MAX_OPTIONS and the attributes of a tag
    beyond MAX_ATTRIBUTES. Most pages are returned as they are."""
    if next(islice(_OPTION.finditer(html), MAX_OPTIONS, None), None):
        first = next(islice(_OPTION.finditer(html), MAX_OPTIONS - 1, None)).end()
        html = html[:first] + _OPTION.sub("", html[first:])
    # A tag may hold either bracket in its quotes, and hardly both.
    if any(max(map(len, html.split(bracket))) > _LONG_TAG for bracket in "<>"):
        html = _TAG.sub(_with_few_attributes, html)
    return html


def start_tags(page: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and attributes of every start tag outside of comments, scripts and the like, names
    in lower case, the first MAX_ATTRIBUTES of a tag. Takes linear time, whatever the page."""
    for tag in _TAG.finditer(page):
        if tag[2] is None:
            continue
        name, *parts = (a[0] for a in islice(_ATTRIBUTE.finditer(tag[2], 1), MAX_ATTRIBUTES + 1))
        found: dict[str, str] = {}
        for part in parts:
            key, _, value = part.partition("=")
            value = value.strip()
            if value[:1] in ("'", '"'):
                value = value[1:].removesuffix(value[0])
            found.setdefault(key.strip().lower(), unescape(value))
        yield name.lower(), found


def _with_few_attributes(tag: re.Match[str]) -> str:
    if tag[2] is None or len(tag[2]) <= _LONG_TAG:
        return tag[0]
    # The first match is the tag's name.
    extra = next(islice(_ATTRIBUTE.finditer(tag[2], 1), MAX_ATTRIBUTES + 1, None), None)
    return tag[2][: extra.start()] if extra else tag[2]


def _tree(html: str) -> Any:
    tree = module("resiliparse.parse.html").HTMLTree.parse(bounded(html))
    if tree.document.query_selector(_TOO_DEEP) is not None:
        raise Unextractable("too_deep")
    return tree
