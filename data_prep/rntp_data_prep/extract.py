"""Pages out of WARC files, and the running text out of a page.

FastWARC stops without an error where a file is cut, and hands over the last page cut short. So a
file is checked before it is read (`check_source`), and every record against its declared length.
"""

import hashlib
import importlib
import importlib.metadata
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from rntp.errors import ConfigError, DataError

MAX_PAGE_BYTES = 16 << 20

# Small, because one chunk of gzip may decompress to a thousand times its size.
_CHUNK_BYTES = 1 << 16
# Packages that are not of the extra `prep`.
_EXTRAS = {"datasets": "hf", "pyarrow": "parquet", "spacy": "filters", "trafilatura": "prep-hq"}
_RECORD_END = b"\r\n\r\n"
_HTML_TYPES = ("text/html", "application/xhtml+xml")
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


class Unextractable(Exception):
    """A page that no text comes out of. reason: for the ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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


def check_source(path: Path) -> str:
    """Hash a whole file (hexadecimal SHA-256) and make sure that it is complete.

    Raises DataError for a gzip stream that is cut or damaged, and for a file whose last record has
    no end.
    """
    digest = hashlib.sha256()
    tail = b""
    try:
        with open(path, "rb") as file:
            chunks = hashed_chunks(file, digest)
            plain = gunzip(chunks) if path.suffix == ".gz" else chunks
            for chunk in plain:
                tail = (tail + chunk)[-len(_RECORD_END) :]
    except (zlib.error, EOFError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); {FETCH_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if tail != _RECORD_END:
        raise DataError(f"{path} is truncated: its last record has no end; {FETCH_AGAIN}")
    return digest.hexdigest()


def read_pages(path: Path) -> Iterator[Page]:
    """Every HTTP response in a checked file, in order, usable or not.

    Raises DataError for a record that is shorter than it declares, or that cannot be parsed;
    ConfigError where the reader is not installed.
    """
    warc = module("fastwarc.warc")
    responses = warc.WarcRecordType.response
    try:
        with open(path, "rb") as file:
            for record in warc.ArchiveIterator(file, record_types=responses, parse_http=False):
                url = record.headers.get("WARC-Target-URI", "")
                declared_bytes = record.content_length
                if declared_bytes > MAX_PAGE_BYTES:
                    yield Page(url, path.name, None, "page_too_large")
                    continue
                record.freeze()
                if record.content_length != declared_bytes:
                    raise DataError(
                        f"{path}: the record of {url} has {record.content_length} of "
                        f"{declared_bytes} bytes; {FETCH_AGAIN}"
                    )
                yield _page(url, path.name, record)
    except OSError as error:
        raise DataError(f"{path} cannot be read as WARC: {error}; {FETCH_AGAIN}") from error


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
    """As `extract`, by trafilatura: cleaner, and some twenty times slower.

    Some pages take it hours: see `rntp_data_prep.child` for a limit.
    """
    trafilatura = module("trafilatura")
    tree = _tree(html)
    text = trafilatura.extract(
        html, favor_precision=True, include_comments=False, deduplicate=False
    )
    return " ".join((tree.title or "").split()), text or ""


def extractor_version(extractor: str = "resiliparse") -> str:
    """Versions of the packages whose behaviour decides what a text is.

    Raises ConfigError where one is not installed.
    """
    names = list(dict.fromkeys(["fastwarc", "resiliparse", extractor]))
    for name in names:
        module(name)
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _tree(html: str) -> Any:
    tree = module("resiliparse.parse.html").HTMLTree.parse(html)
    if tree.document.query_selector(_TOO_DEEP) is not None:
        raise Unextractable("too_deep")
    return tree


FETCH_AGAIN = "fetch the file again"


def _page(url: str, source: str, record: Any) -> Page:
    record.parse_http()
    http = record.http_headers
    if http is None:
        return Page(url, source, None, "not_http")
    if http.status_code != 200:
        return Page(url, source, None, "http_status")
    if record.http_content_type not in _HTML_TYPES:
        return Page(url, source, None, "not_html")
    try:
        body = _decode(
            record.reader.read(),
            transfer=http.get("Transfer-Encoding", "").strip().lower(),
            content=http.get("Content-Encoding", "").strip().lower(),
        )
    except (OSError, EOFError, zlib.error):
        return Page(url, source, None, "undecodable")
    if len(body) > MAX_PAGE_BYTES:
        return Page(url, source, None, "page_too_large")
    encodings = module("resiliparse.parse.encoding")
    declared = record.http_charset
    encoding = (
        encodings.map_encoding_to_html5(declared)
        if declared
        else encodings.detect_encoding(body, from_html_meta=True)
    )
    return Page(url, source, encodings.bytes_to_str(body, encoding))


def _decode(body: bytes, *, transfer: str, content: str) -> bytes:
    """Undo the HTTP encodings of a body; at most one byte more than MAX_PAGE_BYTES.

    Raises OSError, zlib.error or EOFError for a body that is damaged, cut, or of an unknown kind.
    FastWARC's own decoding takes a cut gzip body for a whole one, so gzip is undone here.
    """
    streams = module("fastwarc.stream_io")
    if transfer == "chunked":
        body = streams.ChunkedReader(io.BytesIO(body)).read()
    if content in ("", "identity"):
        return body
    if content in ("gzip", "x-gzip", "deflate"):
        stream = zlib.decompressobj(wbits=47)  # gzip or zlib framing, whichever it has
        plain = stream.decompress(body, MAX_PAGE_BYTES + 1)
        if not stream.eof and len(plain) <= MAX_PAGE_BYTES:
            raise EOFError("the compressed body is cut")
        return plain
    if content == "br":
        return streams.BrotliReader(io.BytesIO(body)).read(MAX_PAGE_BYTES + 1)
    raise OSError(f"unknown content encoding {content}")


def module(name: str) -> ModuleType:
    """A module of one of the extras. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"reading and preparing pages needs {package}, which is not installed; "
            f"`pip install 'rntp[{_EXTRAS.get(package, 'prep')}]'`"
        ) from error


def hashed_chunks(file: BinaryIO, digest: Any) -> Iterator[bytes]:
    """A file's bytes, which also go into `digest`."""
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        yield chunk


def gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress all members. Raises zlib.error, or EOFError where the last member is cut."""
    member = zlib.decompressobj(wbits=31)
    begun = False
    for chunk in chunks:
        while chunk:
            begun = True
            yield member.decompress(chunk)
            chunk = member.unused_data
            if member.eof:
                member, begun = zlib.decompressobj(wbits=31), False
    if begun:
        raise EOFError("the last gzip member has no end")
