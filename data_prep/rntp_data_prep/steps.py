"""The steps of a preparation, as datatrove pipeline steps.

What a page goes through is a list of these and of datatrove's own (`pipeline`). A filter of ours
gives its reasons as they are; a filter of datatrove's has its name before them. Whatever a filter
drops goes into the books of its part through the filter's exclusion writer.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, Self

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter
from loguru import logger

from rntp.errors import ConfigError
from rntp_data_prep.books import Books, kept_documents, pack_ids
from rntp_data_prep.cleaner import shared_cleaner
from rntp_data_prep.config import Filter, PrepConfig
from rntp_data_prep.extract import Unextractable
from rntp_data_prep.packages import module
from rntp_data_prep.page import Options, Page, Tally
from rntp_data_prep.sources import pages
from rntp_data_prep.texts import check_length, cleaned_page, text_id

Encode = Callable[[str], Sized]

# datatrove logs every task to the console; what a task did is in its part's record.
logger.disable("datatrove")

# A run of signs costs a hundred times what one of letters costs: they are taken off one by one.
_MAX_SQUARES = {re.compile(r"\S{500,}"): 2e8, re.compile(r"(?:_|[^\w\s]){50,}"): 5e6}
# resiliparse's out-of-place distance: its authors take a text above 1200 for no language at all.
_MAX_LANGUAGE_DISTANCE = 1200


class Ledger:
    """An exclusion writer that enters what a filter drops into the books."""

    def __init__(self, books: Books, prefix: str = "") -> None:
        self._books = books
        self._prefix = prefix

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Document, rank: int = 0) -> None:
        reason = document.metadata.pop("filter_reason", "")
        place = document.metadata
        self._books.drop(
            place["url"], place["source"], "/".join(filter(None, (self._prefix, reason)))
        )


class ReadPages(PipelineStep):
    """Part `rank`: the pages of one source."""

    type, name = "📖 - READER", "pages"

    def __init__(self, books: Books, sources: list[str], options: list[Options]) -> None:
        super().__init__()
        self.books, self.sources, self.options = books, sources, options

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        tally = Tally(notes=self.books.notes)
        for page in pages(self.sources[rank], self.options[rank], tally):
            self.books.count_page()
            is_html = page.html is not None
            text = page.html if is_html else page.text
            if text is None:
                self.books.drop(page.url, page.source, page.reason)
                continue
            facts = {"url": page.url, "source": page.source, "title": page.title}
            yield Document(text, page.url, metadata={**facts, "is_html": is_html})


class Extract(BaseFilter):
    """HTML to its running text, other texts as they are; then `rntp_data_prep.clean`."""

    name = "extract"

    def __init__(self, books: Books, config: PrepConfig) -> None:
        super().__init__(Ledger(books))
        self.books, self.config = books, config
        # resiliparse has a limit of its own, which grows with the page.
        limit_s = config.extraction_s if config.extractor == "trafilatura" else None
        self._limits = config.extractor, limit_s

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        is_html, facts = doc.metadata.pop("is_html"), doc.metadata
        html, text = (doc.text, None) if is_html else (None, doc.text)
        page = Page(facts["url"], facts["source"], html, text=text, title=facts["title"])
        try:
            facts["title"], doc.text, facts["neutralised"] = cleaned_page(
                page, shared_cleaner(*self._limits)
            )
            # Before the filters: what they take grows with the text.
            check_length(doc.text, 1, self.config.max_chars)
        except Unextractable as error:
            return False, error.reason
        return True


class Language(BaseFilter):
    """Keeps texts of the given languages (ISO 639-1), by resiliparse's model, part of its wheel."""

    name = "language"

    def __init__(self, books: Books, languages: Iterable[str]) -> None:
        super().__init__(Ledger(books))
        self.languages = set(languages)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        detect = module("resiliparse.parse.lang").detect_fast
        language, _ = detect(doc.text, cutoff=_MAX_LANGUAGE_DISTANCE)
        doc.metadata["language"] = language
        return True if language in self.languages else (False, f"language/{language}")


class Unbroken(BaseFilter):
    """Leaves out texts whose runs without spaces would keep splitters of words for too long.

    These, spaCy's among them, and the patterns for addresses take time by the square of a run.
    Bounded are the sums of these squares: seconds a megabyte, and no page of running text.
    """

    name = "unbroken"

    def __init__(self, books: Books) -> None:
        super().__init__(Ledger(books))

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        megabytes = 1 + len(doc.text) / 1e6
        for runs, most in _MAX_SQUARES.items():
            if sum(len(run[0]) ** 2 for run in runs.finditer(doc.text)) > most * megabytes:
                return False, "unbroken_text"
        return True


class MaskPii(PipelineStep):
    """Mail and public IP addresses become ones that nobody has; texts with some are counted."""

    type, name = "✂️ - FORMAT", "pii"

    def __init__(self, books: Books) -> None:
        super().__init__()
        from datatrove.pipeline.formatters import PIIFormatter

        self.books = books
        # One replacement each: datatrove's go round, so that a text would depend on those before.
        self._formatter = PIIFormatter(
            email_replacement="email@example.com", ip_replacement="192.0.2.1"
        )

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        for doc in data:
            masked = self._formatter.format(doc.text)
            self.books.notes["pages_with_masked_addresses"] += masked != doc.text
            doc.text = masked
            yield doc


class Limits(BaseFilter):
    """Texts of a usable length, in characters and in tokens; gives them their id."""

    name = "limits"

    def __init__(self, books: Books, config: PrepConfig, encode: Encode) -> None:
        super().__init__(Ledger(books))
        self.books, self.config, self.encode = books, config, encode

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        try:
            check_length(doc.text, self.config.min_chars, self.config.max_chars)
        except Unextractable as error:
            return False, error.reason
        ids = self.encode(doc.text)
        if len(ids) < self.config.min_tokens:
            return False, "too_few_tokens"
        doc.metadata["num_tokens"] = len(ids)
        if self.config.token_ids:
            doc.metadata["token_ids"] = pack_ids(ids)
        doc.id = text_id(doc.text)
        return True


class WritePart(PipelineStep):
    """Opens the books of part `rank`, keeps what comes through, and closes them."""

    type, name = "💽 - WRITER", "part"

    def __init__(self, books: Books, folders: list[Path], keys: list[str]) -> None:
        super().__init__()
        self.books, self.folders, self.keys = books, folders, keys

    def run(
        self, data: Iterable[Document], rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        self.books.folder = self.folders[rank]
        with self.books:  # the steps before this one begin with the first document asked for
            for doc in data:
                self.books.keep(doc)
                yield doc
            self.books.close(self.keys[rank])


def datatrove_filter(name: Filter, books: Books) -> BaseFilter:
    """One of datatrove's filters, as FineWeb sets it. Raises ConfigError for a missing package."""
    from datatrove.pipeline import filters

    ledger: Any = Ledger(books, name)
    try:
        if name == "url":
            from tldextract import TLDExtract

            step = filters.URLFilter(exclusion_writer=ledger)
            # The suffix list of the wheel: nothing is fetched, and every machine decides alike.
            step.tldextractor = TLDExtract(cache_dir=None, suffix_list_urls=())
            return step
        if name == "gopher_repetition":
            return filters.GopherRepetitionFilter(exclusion_writer=ledger)
        if name == "gopher_quality":
            return filters.GopherQualityFilter(exclusion_writer=ledger)
        if name == "c4_quality":
            return filters.C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=ledger)
        return filters.FineWebQualityFilter(exclusion_writer=ledger)
    except ImportError as error:
        raise ConfigError(
            f"the filter {name} needs a package that is not installed ({error}); "
            "`pip install 'rntp[filters]'`"
        ) from error


def pipeline(
    config: PrepConfig,
    encode: Encode,
    sources: list[str],
    options: list[Options],
    folders: list[Path],
    keys: list[str],
) -> list[Any]:
    """Return what every page goes through on its own; task n prepares sources[n] into
    folders[n]."""
    books = Books(Path())
    between = page_steps(config, encode, books)
    return [ReadPages(books, sources, options), *between, WritePart(books, folders, keys)]


def page_steps(config: PrepConfig, encode: Encode, books: Books) -> list[Any]:
    """The steps from a page as it was read to a document, whose drops go into `books`."""
    steps: list[Any] = []
    if "url" in config.filters:
        steps.append(datatrove_filter("url", books))
    steps.append(Extract(books, config))
    if config.languages:
        steps.append(Language(books, config.languages))
    if config.mask_pii or config.dedup == "minhash" or set(config.filters) - {"url"}:
        steps.append(Unbroken(books))
    steps += [datatrove_filter(name, books) for name in config.filters if name != "url"]
    if config.mask_pii:
        steps.append(MaskPii(books))
    return [*steps, Limits(books, config, encode)]


class ReadParts(PipelineStep):
    """The kept documents of part `rank`, for stages that compare documents."""

    type, name = "📖 - READER", "parts"

    def __init__(self, folders: list[Path]) -> None:
        super().__init__()
        self.folders = folders

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from kept_documents(self.folders[rank])
