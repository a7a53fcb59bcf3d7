"""What a reader hands over: pages, and how a source is to be read."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

MAX_PAGE_BYTES = 16 << 20

MAX_REPLACED = 0.02
"""Share of a text's characters that may stand for bytes that are none (U+FFFD)."""

Damaged = Literal["refuse", "use"]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a source.

    html: the decoded page, or None where it has `text` (with its title, if it has one), or where
    `reason` says why it cannot be used.
    """

    url: str
    source: str
    html: str | None
    reason: str = ""
    text: str | None = None
    title: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How a source is read. text_field, html_field: of its rows, dotted for nested ones; empty
    for the usual names. damaged: whether a file that is cut or damaged is used as far as it is
    whole."""

    text_field: str = ""
    html_field: str = ""
    damaged: Damaged = "refuse"


@dataclass(slots=True)
class Tally:
    """What is counted while a source is read. notes: things done to pages that are not drops.
    fields: names of the fields of rows that had no text."""

    notes: Counter[str] = field(default_factory=Counter)
    fields: dict[str, None] = field(default_factory=dict)

    def replaced(self, characters: int) -> None:
        """Count a page in which so many characters became U+FFFD."""
        if characters:
            self.notes["pages_with_replaced_characters"] += 1
            self.notes["replaced_characters"] += characters


Unit = Callable[[], Page]
"""A page that is there and was not decoded or parsed yet: so that a source can be gone through
whole before its first page is used, without doing everything twice."""


def readable(name: str) -> str:
    """A file's name, of which bytes that are no UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def top_level_domain(url: str) -> str:
    """The last label of a URL's host, which says something about the charset; or nothing."""
    try:
        return (urlsplit(url).hostname or "").rpartition(".")[2]
    except ValueError:
        return ""
