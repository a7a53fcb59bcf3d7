"""An archived HTTP response to its body, as a tolerant reader takes it.

Archives are not the wire. Crawlers undo a coding and keep the header that names it, write labels
that are none, leave out the last chunk. So a coding is undone where the body has it; where it has
not, the body is taken as it is if it looks like a page, and that is counted.
"""

import re
import zlib
from collections import Counter
from dataclasses import dataclass

from rntp_data_prep.packages import module

_STATUS = re.compile(rb"[ \t]*(?:HTTP/\d+(?:\.\d+)?|ICY)[ \t]+(\d{3})(?!\d)[^\n]*\n?", re.I)
_HEAD_END = re.compile(rb"\r?\n[ \t]*\r?\n")
_FIELD = re.compile(rb"[ \t]*([^\s:][^:\n]{0,200}?)[ \t]*:[ \t]*(.*)")
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_MARKUP = re.compile(
    rb"<(?:!doctype|!--|\?xml|html|head|body|meta|title|link|script|style|div|p|span|h[1-6]|table"
    rb"|tr|td|a|b|i|br|hr|ul|ol|li|em|strong|font|center|img|form|article|section|main|pre)"
    rb"[\s>/-]",
    re.I,
)
_LOOKED_AT = 1 << 14
_ZLIB, _GZIP, _RAW = 15, 31, -15
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_NO_CODING = frozenset(["none", "null", "binary", "8bit", "7bit", "utf-8", "utf8", "text/html"])
_CODINGS = frozenset(["gzip", "x-gzip", "deflate", "br", "zstd", "chunked"])


class Undecoded(Exception):
    """A body whose coding cannot be undone, and that is no page as it is."""


@dataclass(frozen=True, slots=True)
class Response:
    """A parsed response. fields: name in lower case, and value, in their order."""

    status: int
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of a field, as often as it is there."""
        return [value for key, value in self.fields if key == name]


def parse_response(block: bytes) -> Response | None:
    """Head and body of a response, or None for a block that is none. Skips interim responses."""
    while begin := _STATUS.match(block):
        status = int(begin[1])
        end = _HEAD_END.search(block, begin.end(1))
        head = block[begin.end() : end.start() if end else len(block)]
        body = block[end.end() :] if end else b""
        if block[begin.end() : begin.end() + 2].startswith((b"\n", b"\r\n")):  # no field at all
            head, body = b"", block[begin.end() :].lstrip(b"\r").removeprefix(b"\n")
        if not 100 <= status < 200:
            return Response(status, tuple(_fields(head)), body)
        block = body
    return None


def looks_like_markup(body: bytes) -> bool:
    """Tell whether a body has tags of HTML near its start."""
    return _MARKUP.search(body, 0, _LOOKED_AT) is not None


def plain_body(response: Response, limit: int, notes: Counter[str]) -> bytes:
    """The body without its codings, at most one byte more than `limit`.

    notes: counts `http_codings_already_undone`, `http_codings_unknown` and
    `http_codings_undeclared`. Raises Undecoded.
    """
    codings = [
        token.strip().strip("\"'").lower()
        for name in ("content-encoding", "transfer-encoding")
        for value in response.all(name)
        for token in value.split(",")
    ]
    body = response.body
    for coding in reversed(codings):
        if coding in ("", "identity"):
            continue
        if coding not in _CODINGS:
            if coding not in _NO_CODING and not looks_like_markup(body):
                raise Undecoded(f"unknown content encoding {coding[:40]}")
            notes["http_codings_unknown"] += 1
            continue
        plain = _undone(body, coding, limit)
        if plain is None:
            if not looks_like_markup(body):
                raise Undecoded(f"the body is no {coding}")
            notes["http_codings_already_undone"] += 1
            continue
        body = plain
        if len(body) > limit:
            return body
    return _undeclared(body, limit, notes)


def _undeclared(body: bytes, limit: int, notes: Counter[str]) -> bytes:
    """A body that is coded still though no field says so: what no text begins with."""
    plain: bytes | None = None
    if body.startswith(_GZIP_MAGIC):
        plain = _inflate(body, _GZIP, limit)
    elif body.startswith(_ZSTD_MAGIC):
        plain = _unzstd(body, limit)
    elif body.endswith((b"\r\n0\r\n\r\n", b"\n0\n\n")) and _CHUNK.match(body):
        plain = _unchunk(body, strict=True)
    if plain is None:
        return body
    notes["http_codings_undeclared"] += 1
    return plain


def _fields(head: bytes) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in head.split(b"\n"):
        line = line.rstrip(b"\r")
        if line[:1] in (b" ", b"\t") and found:
            name, value = found[-1]
            found[-1] = name, f"{value} {line.strip().decode('latin-1')}".strip()
        elif field := _FIELD.match(line):
            found.append((field[1].decode("latin-1").lower(), field[2].strip().decode("latin-1")))
    return found


def _undone(body: bytes, coding: str, limit: int) -> bytes | None:
    """A body without one coding; None where it does not have it. Raises Undecoded if cut."""
    if coding == "chunked":
        return _unchunk(body, strict=False)
    if coding == "br":
        return _unbrotli(body, limit)
    if coding == "zstd":
        return _unzstd(body, limit) if body.startswith(_ZSTD_MAGIC) else None
    # Servers mean either by either name.
    if body.startswith(_GZIP_MAGIC):
        return _inflate(body, _GZIP, limit)
    if len(body) > 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0:
        return _inflate(body, _ZLIB, limit)
    if coding == "deflate" and not looks_like_markup(body):
        return _inflate(body, _RAW, limit)
    return None


def _inflate(body: bytes, wbits: int, limit: int) -> bytes:
    parts, size = list[bytes](), 0
    while body:
        stream = zlib.decompressobj(wbits=wbits)
        try:
            plain = stream.decompress(body, limit + 1 - size)
        except zlib.error as error:
            if parts:  # what follows a whole member and is none
                break
            raise Undecoded(str(error)) from error
        parts.append(plain)
        size += len(plain)
        if size > limit:
            break
        if not stream.eof:
            raise Undecoded("the compressed body is cut")
        body = stream.unused_data if wbits == _GZIP else b""
        if not body.startswith(_GZIP_MAGIC):
            break
    return b"".join(parts)


def _unbrotli(body: bytes, limit: int) -> bytes | None:
    brotli = module("brotli")
    stream, parts, size, data = brotli.Decompressor(), [], 0, body
    try:
        while not stream.is_finished() and size <= limit:
            piece = stream.process(data, output_buffer_limit=min(limit + 1 - size, 1 << 20))
            data = b""
            if not piece and stream.can_accept_more_data():
                break  # cut
            parts.append(piece)
            size += len(piece)
    except brotli.error:
        return None  # it has no first bytes that would tell
    if not stream.is_finished() and size <= limit:
        if looks_like_markup(body):
            return None
        raise Undecoded("the compressed body is cut")
    return b"".join(parts)


def _unzstd(body: bytes, limit: int) -> bytes:
    from rntp_data_prep.unpack import Broken, unpack_bytes

    try:
        return unpack_bytes(body, limit)
    except Broken as broken:
        raise Undecoded(broken.what) from broken


def _unchunk(body: bytes, *, strict: bool) -> bytes | None:
    """The chunks of a body; None where it does not begin with one, or, if strict, is not all
    chunks. The last one, which is empty, may be missing, and the one before it cut."""
    parts, place = list[bytes](), 0
    while head := _CHUNK.match(body, place):
        size = int(head[1], 16)
        if size == 0:
            return b"".join(parts)
        chunk = body[head.end() : head.end() + size]
        if strict and len(chunk) < size:
            return None
        parts.append(chunk)
        place = head.end() + size
        if body[place : place + 2] == b"\r\n":
            place += 2
        elif body[place : place + 1] == b"\n":
            place += 1
        elif place < len(body):
            break
    if strict or not parts or (len(parts) == 1 and place < len(body)):
        return None  # a line of hexadecimal digits at the start of a text
    return b"".join([*parts, body[place:]])
