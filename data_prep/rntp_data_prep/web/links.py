"""The links of a page, in the order they stand in."""

from rntp_data_prep.extract import start_tags
from rntp_data_prep.web.urls import canonical

MAX_LINKS = 500
"""Links of a page that are looked at; a page of more is an index of something without end."""


def links(html: str, url: str) -> list[str]:
    """Canonical addresses that a page links to, each once, MAX_LINKS at most.

    url: of the page. Left out are links that say `rel=nofollow`, all of a page that says so to
    robots, and what `canonical` refuses; `<base>` is honoured. No tree is built: a parser could be
    kept busy for minutes by nested tags.
    """
    start, found = url, dict[str, None]()
    for name, attributes in start_tags(html):
        if name == "base" and start == url and "href" in attributes:
            start = canonical(attributes["href"], url) or url
        elif name == "meta" and attributes.get("name", "").lower() == "robots":
            if {"nofollow", "none"} & set(_words(attributes.get("content", ""))):
                return []
        elif name == "a" and "nofollow" not in _words(attributes.get("rel", "")):
            target = canonical(attributes.get("href", ""), start)
            if target and target != url and len(found) < MAX_LINKS:
                found[target] = None
    return list(found)


def _words(value: str) -> list[str]:
    return value.lower().replace(",", " ").split()
