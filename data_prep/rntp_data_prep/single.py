"""What a preparation makes of one page: for those who look before it runs."""

from pathlib import Path
from typing import Any

from datatrove.data import Document

from rntp_data_prep.books import Books
from rntp_data_prep.config import PrepConfig
from rntp_data_prep.page import Page
from rntp_data_prep.steps import Encode, page_steps


class _Last(Books):
    """Books of one page at a time, that are never written."""

    reason = ""

    def drop(self, url: str, source: str, reason: str) -> None:
        self.reason = reason


class OnePage:
    """`one_page(page)` is (document or None, reason, document as far as it came).

    Duplicates and contamination show only in a whole preparation. Raises as `prepare` does.
    """

    def __init__(self, config: PrepConfig, encode: Encode) -> None:
        self._books = _Last(Path())
        self._steps = page_steps(config, encode, self._books)

    def __call__(self, page: Page) -> tuple[Document | None, str, Document | None]:
        """Take a page through every step that knows no other pages."""
        raw = page.html if page.html is not None else page.text
        if raw is None:
            return None, page.reason, None
        self._books.reason = ""
        facts: dict[str, Any] = {"url": page.url, "source": page.source, "title": page.title}
        document = Document(raw, page.url, metadata={**facts, "is_html": page.html is not None})
        through: Any = iter([document])
        for step in self._steps:
            through = step.run(through)
        kept = bool(list(through))
        return document if kept else None, self._books.reason, document
