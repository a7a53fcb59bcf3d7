"""A few pages of every source, before and after: what a preparation would make of them."""

from itertools import islice
from typing import Any

from rntp_data_prep.config import PrepConfig
from rntp_data_prep.single import OnePage
from rntp_data_prep.sources import pages
from rntp_data_prep.steps import Encode

_SHOWN_CHARS = 400


def preview(config: PrepConfig, encode: Encode, docs: int) -> list[dict[str, Any]]:
    """The first `docs` pages of every source: what was read, and what is kept or why nothing is.

    Duplicates and contamination show only in a whole preparation. Raises as `prepare` does.
    """
    one_page, found = OnePage(config, encode), []
    for source in config.source_files():
        for page in islice(pages(source, config.options(source)), docs):
            raw = page.html if page.html is not None else page.text
            kept, reason, document = one_page(page)
            row: dict[str, Any] = {
                "source": page.source,
                "url": page.url,
                "read_chars": len(raw or ""),
            }
            row["read"] = (raw or "")[:_SHOWN_CHARS]
            if document is not None:
                row["kept"] = kept is not None
                row["tokens"] = document.metadata.get("num_tokens")
                row["text"] = "" if document.text == raw else document.text[:_SHOWN_CHARS]
            found.append({"kept": False, "text": "", **row, "reason": reason})
    return found


def as_text(rows: list[dict[str, Any]]) -> str:
    """The rows for people: a page beside what becomes of it."""
    lines = []
    for row in rows:
        verdict = f"kept, {row['tokens']} tokens" if row["kept"] else f"dropped: {row['reason']}"
        lines += [f"── {row['url']} ({row['source']}): {verdict}"]
        lines += [f"  read │ {line}" for line in _few(row["read"], row["read_chars"])]
        lines += [f"  text │ {line}" for line in _few(row["text"], None)]
    return "\n".join(lines)


def _few(text: str, total: int | None) -> list[str]:
    lines = [line[:100] for line in text.split("\n") if line.strip()][:6]
    if lines and total is not None and total > _SHOWN_CHARS:
        lines.append(f"… {total} characters")
    return lines
