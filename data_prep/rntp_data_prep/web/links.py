"""The links of a page, in the order they stand in."""

from typing import Any

from rntp_data_prep.extract import Unextractable, bounded
from rntp_data_prep.packages import module
from rntp_data_prep.web.urls import canonical

MAX_LINKS = 500
"""Links of a page that are looked at; a page of more is an index of something without end."""


def links(html: str, url: str) -> list[str]:
    """Canonical addresses that a page links to, each once, MAX_LINKS at most.

    url: of the page. Left out are links that say `rel=nofollow`, all of a page whose head says so
    to robots, and what `canonical` refuses; `<base>` is honoured.
    """
    try:
        document = _document(html)
    except Unextractable:
        return []
    for meta in document.query_selector_all("meta[name][content]"):
        if (meta.getattr("name") or "").lower() == "robots" and (
            {"nofollow", "none"} & set(_words(meta.getattr("content")))
        ):
            return []
    base = document.query_selector("base[href]")
    start = (canonical(base.getattr("href"), url) if base is not None else None) or url
    found: dict[str, None] = {}
    for anchor in document.query_selector_all("a[href]"):
        if len(found) == MAX_LINKS:
            break
        if "nofollow" in _words(anchor.getattr("rel")):
            continue
        target = canonical(anchor.getattr("href") or "", start)
        if target and target != url:
            found[target] = None
    return list(found)


def _document(html: str) -> Any:
    return module("resiliparse.parse.html").HTMLTree.parse(bounded(html)).document


def _words(value: str | None) -> list[str]:
    return (value or "").lower().replace(",", " ").split()
