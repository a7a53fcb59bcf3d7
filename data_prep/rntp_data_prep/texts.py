"""A page to the text of a document, one page at a time: the part that knows no other pages."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from rntp_data_prep.clean import clean, normalise
from rntp_data_prep.config import PrepConfig
from rntp_data_prep.extract import Page, Unextractable, extract

Extractor = Callable[[str], tuple[str, str]]
"""HTML to (title, text)."""


# The limits of a preparation whose config sets none.
MIN_TOKENS, MIN_CHARS, MAX_CHARS = (
    int(PrepConfig.model_fields[name].default) for name in ("min_tokens", "min_chars", "max_chars")
)


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page becomes. id: see `text_id`."""

    id: str
    text: str
    title: str


def cleaned(
    raw: str, *, is_html: bool, title: str, extractor: Extractor = extract
) -> tuple[str, str, int]:
    """(title, text, neutralised markers) of what was read; see `rntp_data_prep.clean`."""
    text = raw
    if is_html:
        found, text = extractor(raw)
        title = title or found
    text, neutralised = clean(text, title)
    return normalise(title), text, neutralised


def text_id(text: str) -> str:
    """32 hexadecimal digits: the same text has the same id, and split, in every corpus."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def page_text(page: Page) -> PageText | None:
    """What a preparation with default settings makes of a page, or None if it leaves it out.

    The number of tokens (MIN_TOKENS) is left to the caller, who has the tokenizer.
    """
    raw = page.html if page.html is not None else page.text
    if raw is None:
        return None
    try:
        title, text, _ = cleaned(raw, is_html=page.html is not None, title=page.title)
    except Unextractable:
        return None
    if not MIN_CHARS <= len(text) <= MAX_CHARS:
        return None
    return PageText(text_id(text), text, title)
