"""Chosen pages as they were had, and the corpus that a growth makes of them."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rntp_data_prep.decontaminate import Benchmarks
from rntp_data_prep.page import Page
from rntp_data_prep.prepare import prepare
from rntp_data_prep.single import OnePage
from rntp_data_prep.texts import text_id
from transformers import PreTrainedTokenizerBase

from rntp.data.manifest import Manifest
from rntp.errors import DataError
from rntp.grow.settings import Frontier
from rntp.model.tokenizer import encode, tokenizer_digest
from rntp.runtime.files import write_bytes_atomic

PAGES, SEGMENTS = "pages", "segments"


def keep_page(output: Path, number: int, page: Page) -> str:
    """Write a page to where its segment will be made of it; returns the SHA-256 of the file."""
    row = {"url": page.url, "title": page.title}
    row |= {"html": page.html} if page.html is not None else {"text": page.text or ""}
    payload = (json.dumps(row, ensure_ascii=True) + "\n").encode("ascii")
    path = _path(output, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, payload)
    return hashlib.sha256(payload).hexdigest()


def kept_page(output: Path, number: int, digest: str) -> Page:
    """The page of `keep_page`. Raises DataError where the file is not what was written."""
    path = _path(output, number)
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); restore it from a copy") from error
    if hashlib.sha256(payload).hexdigest() != digest:
        raise DataError(f"{path} is not what was written; restore it from a copy")
    row = json.loads(payload)
    source = path.name
    if "html" in row:
        return Page(row["url"], source, row["html"], title=row["title"])
    return Page(row["url"], source, None, text=row["text"], title=row["title"])


class Preparer:
    """A growth's preparation: of one page, to look at it, and of all, to train on them."""

    def __init__(
        self, settings: Frontier, tokenizer: PreTrainedTokenizerBase, spec: str, others: list[Path]
    ) -> None:
        """spec: of the tokenizer. others: corpora that are grown, whose texts come not again."""
        self._settings, self._tokenizer, self._spec = settings, tokenizer, spec
        self._others = tuple(others)
        self._encode = partial(encode, tokenizer)
        config = self._config(["pages.jsonl"], Path("segment"))
        self._one_page = OnePage(config, self._encode)
        self._benchmarks = Benchmarks(config.decontaminate)
        self.known = {name for folder in others for name in Manifest.load(folder).document_ids}

    def look(self, page: Page, taken: set[str]) -> tuple[str | None, str, str]:
        """(document id, text, "") of a page, or (None, "", reason) where it gives none.

        taken: documents of this growth so far.
        """
        document, reason, _ = self._one_page(page)
        if document is None:
            return None, "", reason
        name = text_id(document.text)
        if name in self.known or name in taken:
            return None, "", "duplicate"
        if benchmark := self._benchmarks.match(document.text):
            return None, "", f"contaminated/{benchmark}"
        return name, document.text, ""

    def segment(
        self, growth: int, rows: Sequence[Mapping[str, Any]], say: Callable[[str], None]
    ) -> Manifest:
        """The corpus of a growth's pages, in the order they were chosen. rows: of the ledger."""
        output = self._settings.output
        path = output / SEGMENTS / f"{growth:04d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            for row in rows:
                kept_page(output, row["number"], row["sha256"])
                file.write(_path(output, row["number"]).read_bytes())
        os.replace(temporary, path)
        config = self._config([str(path)], output / SEGMENTS / f"{growth:04d}")
        return prepare(config, self._encode, tokenizer_digest(self._tokenizer), say)

    def _config(self, sources: list[str], output: Path) -> Any:
        config = self._settings.preparation(sources, output, self._spec, self._others)
        # Rows are written by `keep_page`, whatever the fields of a pool are called.
        return config.model_copy(update={"text_field": "", "html_field": ""})


def _path(output: Path, number: int) -> Path:
    return output / PAGES / f"{number:06d}.json"
