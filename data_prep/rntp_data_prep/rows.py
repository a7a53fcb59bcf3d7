"""Rows with named fields to pages, and JSON files of any shape to rows.

JSON is written one value a line, as one array, or over many lines; with a byte order mark, as
UTF-16, with NaN in it and numbers of thousands of digits. A row that cannot be read costs itself.
"""

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

from rntp_data_prep.charsets import Undecodable, decode
from rntp_data_prep.page import (
    MAX_PAGE_BYTES,
    MAX_REPLACED,
    Options,
    Page,
    Tally,
    Unit,
    top_level_domain,
)
from rntp_data_prep.unpack import Broken

TEXT_FIELDS = ("text", "content", "raw_content")

_HEAD_BYTES = 1 << 18
_SURROGATE = re.compile("[\ud800-\udfff]")
_OUTSIDE, _INSIDE = re.compile(rb'["{}]'), re.compile(rb'["\\]')
_MOST_FIELDS = 40


def json_units(
    pieces: Iterator[bytes | None], source: str, options: Options, tally: Tally
) -> Iterator[Unit]:
    """The rows of a JSON file. pieces: as of `unpack`."""
    head, pieces = _peek(_as_utf8(pieces))
    if b"\r" in head and b"\n" not in head:
        pieces = (piece and piece.replace(b"\r", b"\n") for piece in pieces)
        head = head.replace(b"\r", b"\n")
    values = _lines(pieces) if _has_a_row_a_line(head) else _objects(pieces)
    for number, value in values:
        place = f"{source}#{number}"
        if value is None:
            yield partial(Page, place, source, None, "page_too_large")
        elif value.strip():
            yield partial(_json_page, value, place, source, options, tally)


def row_page(row: object, place: str, source: str, options: Options, tally: Tally) -> Page:
    """The page of a row: of its field with HTML, or else of the first one with text."""
    if not isinstance(row, dict):
        return Page(place, source, None, "malformed_line")
    url, title = (row.get(key) for key in ("url", "title"))
    url = _unicode(url)[0] if isinstance(url, str) and url else place
    title = _unicode(title)[0] if isinstance(title, str) else ""
    html_fields, text_fields = field_names(options)
    found = [(name, lookup(row, name)) for name in (*html_fields, *text_fields)]
    texts = [(name, value) for name, value in found if isinstance(value, str | bytes)]
    if not texts:
        _note_fields(row, tally)
        return Page(url, source, None, "no_text_field")
    # An empty field beside one that is not says nothing.
    name, value = next(((n, v) for n, v in texts if v.strip()), texts[0])
    is_html = name in html_fields
    if len(value) > MAX_PAGE_BYTES:
        return Page(url, source, None, "page_too_large")
    try:
        text, replaced = _text_of(value, url, is_html)
    except Undecodable:
        return Page(url, source, None, "undecodable")
    if text.count("\ufffd") > MAX_REPLACED * len(text):
        return Page(url, source, None, "not_unicode")
    tally.replaced(replaced)
    if is_html:
        return Page(url, source, text, title=title)
    return Page(url, source, None, text=text, title=title)


def field_names(options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the fields with HTML and of those with text, in the order they are looked at."""
    if options.text_field and not options.html_field:
        return (), (options.text_field,)
    html = (options.html_field or "html",)
    return html, (options.text_field,) if options.text_field else TEXT_FIELDS


def lookup(row: Any, name: str) -> Any:
    """A field of a row, or of a row within it, by its dotted name; None where there is none."""
    if name in row:
        return row[name]
    first, dot, rest = name.partition(".")
    inner = row.get(first)
    return lookup(inner, rest) if dot and isinstance(inner, dict) else None


def parse_json(text: str) -> Any:
    """JSON as it is written: NaN passes, and a number may have any length. Raises ValueError or
    RecursionError."""
    return json.loads(text, parse_int=float)


def _json_page(value: bytes, place: str, source: str, options: Options, tally: Tally) -> Page:
    text = value.decode("utf-8", "replace")
    replaced = text.count("\ufffd") - value.count("\ufffd".encode())
    if replaced > MAX_REPLACED * len(text):
        return Page(place, source, None, "malformed_line")
    try:
        row = parse_json(text)
    except (ValueError, RecursionError):
        return Page(place, source, None, "malformed_line")
    tally.replaced(replaced)
    return row_page(row, place, source, options, tally)


def _text_of(value: str | bytes, url: str, is_html: bool) -> tuple[str, int]:
    """A field's text and the number of its characters that were replaced. Raises Undecodable."""
    if isinstance(value, str):
        return _unicode(value)
    found = decode(value, markup=is_html, tld=top_level_domain(url))
    return found.text, found.replaced


def _unicode(text: str) -> tuple[str, int]:
    """A text without lone surrogates, which JSON can write and UTF-8 cannot."""
    return (text, 0) if text.isascii() else _SURROGATE.subn("\ufffd", text)


def _note_fields(row: dict[Any, Any], tally: Tally) -> None:
    for name, value in row.items():
        if len(tally.fields) >= _MOST_FIELDS:
            return
        inner = value if isinstance(value, dict) else {}
        tally.fields |= dict.fromkeys([f"{name}.{key}" for key in inner] or [str(name)])


def _as_utf8(pieces: Iterator[bytes | None]) -> Iterator[bytes | None]:
    """Pieces of a text of any Unicode form as UTF-8, without a byte order mark."""
    head, pieces = _peek(pieces, 4)
    for mark, name in (
        (codecs.BOM_UTF8, ""),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if head.startswith(mark):
            first = next(pieces)
            assert first is not None
            yield from _recoded(first[len(mark) :], pieces, name)
            return
    if head[:1] in (b"[", b"{") and head[1:2] == b"\0":
        yield from _recoded(b"", pieces, "utf-16-le")
    elif head[:1] == b"\0" and head[1:2] in (b"[", b"{"):
        yield from _recoded(b"", pieces, "utf-16-be")
    else:
        yield from pieces


def _recoded(first: bytes, pieces: Iterator[bytes | None], name: str) -> Iterator[bytes | None]:
    if not name:
        yield first
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(name)("replace")
    yield decoder.decode(first).encode("utf-8", "replace")
    for piece in pieces:
        yield piece and decoder.decode(piece).encode("utf-8", "replace")
    yield decoder.decode(b"", True).encode("utf-8", "replace")


def _peek(
    pieces: Iterator[bytes | None], count: int = _HEAD_BYTES
) -> tuple[bytes, Iterator[bytes | None]]:
    """The first bytes, up to a hole, and all pieces, of which the first has these bytes whole.
    What the pieces raise, they raise behind these bytes."""
    parts: list[bytes] = []
    size, ending, error = 0, list[None](), list[Broken]()
    try:
        while size < count and (piece := next(pieces, b"")) != b"":
            if piece is None:
                ending = [None]
                break
            parts.append(piece)
            size += len(piece)
    except Broken as broken:
        error = [broken]
    head = b"".join(parts)
    return head, chain([head], ending, _raised(error), pieces)


def _raised(errors: list[Broken]) -> Iterator[bytes]:
    for error in errors:
        raise error
    yield from ()


def _has_a_row_a_line(head: bytes) -> bool:
    """Whether one of the first lines is a whole object."""
    lines = head.split(b"\n")
    # The last one may go on behind the head.
    for line in lines[:-1] if len(head) >= _HEAD_BYTES else lines:
        try:
            if isinstance(parse_json(line.decode("utf-8", "replace")), dict):
                return True
        except (ValueError, RecursionError):
            continue
    return not head.lstrip().startswith((b"[", b"{"))


def _lines(pieces: Iterator[bytes | None]) -> Iterator[tuple[int, bytes | None]]:
    """(number, line), None for one that is too long, of which no more is held. What is missing
    takes the lines with it that it tore."""
    number, parts, size, is_torn = 1, list[bytes](), 0, False
    for piece in pieces:
        if piece is None:
            parts, size, is_torn = [], 0, True
            continue
        first, *others = piece.split(b"\n")
        for part in (first, *others[:-1]) if others else ():
            if not is_torn:
                size += len(part)
                yield number, None if size > MAX_PAGE_BYTES else b"".join([*parts, part, b"\n"])
            number, parts, size, is_torn = number + 1, [], 0, False
        last = others[-1] if others else first
        size += len(last)
        if size <= MAX_PAGE_BYTES:
            parts.append(last)
        else:
            parts = []
    if size and not is_torn:
        yield number, None if size > MAX_PAGE_BYTES else b"".join(parts)


def _objects(pieces: Iterator[bytes | None]) -> Iterator[tuple[int, bytes | None]]:
    """(number, object), wherever lines end; as `_lines`."""
    scan, number = _Scan(), 0
    for piece in pieces:
        if piece is None:
            scan = _Scan()
            continue
        for found in scan.feed(piece):
            number += 1
            yield number, found
    if scan.depth:
        yield number + 1, b"{"  # it has no end


class _Scan:
    """Finds objects that are in no other, piece by piece."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_string = False
        self._skip = 0  # of the next piece, behind a backslash
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[bytes | None]:
        place, begin, self._skip = self._skip, 0, 0
        while found := (_INSIDE if self._in_string else _OUTSIDE).search(piece, place):
            token, place = found[0], found.end()
            if token == b"\\":
                place += 1
                self._skip = max(0, place - len(piece))
            elif token == b'"':
                self._in_string = not self._in_string
            elif token == b"{":
                self.depth += 1
                if self.depth == 1:
                    begin = found.start()
            elif self.depth:
                self.depth -= 1
                if self.depth == 0:
                    self._hold(piece[begin:place])
                    whole = b"".join(self._parts) if self._size <= MAX_PAGE_BYTES else None
                    self._parts, self._size = [], 0
                    yield whole
        if self.depth:
            self._hold(piece[begin:])

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= MAX_PAGE_BYTES:
            self._parts.append(part)
        else:
            self._parts = []
