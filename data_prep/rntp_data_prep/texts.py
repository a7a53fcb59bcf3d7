"""A page to the text of a document, one page at a time: the part that knows no other pages."""

import hashlib
from dataclasses import dataclass

from rntp_data_prep.cleaner import Cleaner
from rntp_data_prep.config import PrepConfig
from rntp_data_prep.extract import Unextractable
from rntp_data_prep.page import Page

RULES_VERSION = 3
"""Part of a preparation's identity: raise it with any change of what a page becomes, so that a
corpus of older rules is not taken for finished."""

# The limits of a preparation whose config sets none.
MIN_TOKENS, MIN_CHARS, MAX_CHARS = (
    int(PrepConfig.model_fields[name].default) for name in ("min_tokens", "min_chars", "max_chars")
)


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page becomes. id: see `text_id`. neutralised: special-token strings in it that were
    made ordinary text."""

    id: str
    text: str
    title: str
    neutralised: int


def text_id(text: str) -> str:
    """32 hexadecimal digits: the same text has the same id, and split, in every corpus."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def page_text(page: Page, clean: Cleaner) -> PageText:
    """Return what a preparation with default settings makes of a page.

    Raises Unextractable with the reason, for a page that it leaves out. The number of tokens
    (MIN_TOKENS) is left to the caller, who has the tokenizer.
    """
    title, text, neutralised = cleaned_page(page, clean)
    check_length(text, MIN_CHARS, MAX_CHARS)
    return PageText(text_id(text), text, title, neutralised)


def cleaned_page(page: Page, clean: Cleaner) -> tuple[str, str, int]:
    """(title, text, neutralised markers) of a page. Raises Unextractable."""
    raw = page.html if page.html is not None else page.text
    if raw is None:
        raise Unextractable(page.reason)
    title, text, neutralised = clean(raw, is_html=page.html is not None, title=page.title)
    if not text:
        raise Unextractable("no_text")
    return title, text, neutralised


def check_length(text: str, least: int, most: int) -> None:
    """Raise Unextractable for a text of fewer or more characters."""
    if len(text) < least:
        raise Unextractable("too_few_chars")
    if len(text) > most:
        raise Unextractable("too_many_chars")
