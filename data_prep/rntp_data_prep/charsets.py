"""Bytes of a page to its text: the one place where charsets are decided.

Labels mean what browsers take them for, and go before each other as theirs do
(https://encoding.spec.whatwg.org, https://html.spec.whatwg.org#determining-the-character-encoding):
a byte order mark, the transport's label, the page's own, and Firefox's detector where there is
none. One thing differs. A browser shows what a wrong label makes of a page, to a reader who can
see it; a corpus cannot, so a label has to fit the bytes, or the next one is tried.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from rntp_data_prep.packages import module

MAX_UNREADABLE = 0.02
"""Share of a text's characters that may be no characters of a text: U+FFFD and controls."""

_PRESCAN_BYTES = 1 << 16
_VOTE_BYTES = 60  # beyond ASCII
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Where Python's codec of a name knows fewer characters than the standard's decoder.
_WIDER = {"gbk": "gb18030", "gb2312": "gb18030", "big5": "big5hkscs", "euc_jp": "euc_jp"}
# Of the standard's "replacement": browsers refuse to decode them, because scripts can hide there.
_REFUSED_BY_BROWSERS = {
    "iso-2022-kr": "iso2022_kr",
    "hz-gb-2312": "hz",
    "csiso2022kr": "iso2022_kr",
}
_LATIN = frozenset(["cp1250", "cp1252", "cp1254", "cp1257", "cp1258", "mac-roman"]).union(
    f"iso8859-{n}" for n in (1, 2, 3, 4, 10, 13, 14, 15, 16)
)
_MULTIBYTE = frozenset(["gb18030", "gbk", "big5hkscs", "cp932", "euc_jp", "cp949"])
_ESCAPED = frozenset(["iso2022_jp", "iso2022_kr", "hz"])  # all of their bytes are ASCII's
_HIGH = bytes(range(0x80, 0x100))
_LONG_RUN = re.compile(rb"[\x80-\xff]{4,}")
_UNREADABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_XML = re.compile(rb"""\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*["']\s*([^"'>]{1,40})""", re.I)
_META = re.compile(rb"<meta(?=[\s/])((?:[^>\"']|\"[^\"]*+\"|'[^']*+')*+)", re.I)
_ATTRIBUTE = re.compile(rb"""([^\s"'>/=]++)\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s"'>]++))""", re.I)
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';,]+)""", re.I)


class Undecodable(Exception):
    """Bytes that are the text of no charset."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text. codec: Python's name of its charset. replaced: U+FFFD in it that stand for bytes."""

    text: str
    codec: str
    replaced: int


def decode(body: bytes, declared: str = "", *, markup: bool, tld: str = "") -> Decoded:
    """The text of a page, bytes that are no character replaced by U+FFFD.

    declared: label that came with the page. markup: the page may name its own. tld: top-level
    domain of the page's host, a hint for the detector. Raises Undecodable where more than
    MAX_UNREADABLE of the text is no text.
    """
    found = _decode(body, declared, markup, tld)
    if is_unreadable(found.text):
        raise Undecodable(found.codec)
    return found


def is_unreadable(text: str) -> bool:
    """Tell whether more than MAX_UNREADABLE of the characters are no characters of a text."""
    most = int(MAX_UNREADABLE * len(text))
    return next(islice(_UNREADABLE.finditer(text), most, None), None) is not None


def codec(label: str) -> str | None:
    """Python's name of the codec that browsers take for a label; None for a label of none."""
    label = label.strip(" \t\r\n\f\"';,").lower()
    if label in _REFUSED_BY_BROWSERS:
        return _REFUSED_BY_BROWSERS[label]
    found = module("webencodings").lookup(label)
    if found is None or found.name in ("replacement", "x-user-defined"):
        return "cp1252" if label == "x-user-defined" else None
    name = found.codec_info.name
    return _WIDER.get(name.replace("-", "_"), name)


def own_label(body: bytes) -> str:
    """Return what a page itself says that its charset is: an XML declaration, or `<meta>`."""
    head = body[:_PRESCAN_BYTES]
    if declared := _XML.match(head):
        return declared[1].decode("latin-1")
    for meta in _META.finditer(_without_comments(head)):
        found = {
            name.lower(): (one or two or three).decode("latin-1")
            for name, one, two, three in _ATTRIBUTE.findall(meta[1])
        }
        if b"charset" in found:
            return found[b"charset"]
        named = _CHARSET.search(found.get(b"content", ""))
        if named and found.get(b"http-equiv", "").strip().lower() == "content-type":
            return named[1]
    return ""


def content_type_label(value: str) -> str:
    """The charset of a Content-Type, of which only the label needs to be well written."""
    found = _CHARSET.search(value)
    return found[1] if found else ""


def _decode(body: bytes, declared: str, markup: bool, tld: str) -> Decoded:
    for mark, name in _BOMS:
        if body.startswith(mark):
            return _with(body[len(mark) :], name)
    if wide := _unmarked_utf16(body):
        return _with(body, wide)
    names = [codec(declared)] if declared else []
    if markup:
        # What could be read as ASCII so far is no UTF-16.
        own = codec(own_label(body))
        names.append("utf-8" if own and own.startswith("utf-16") else own)
    labels = [name for name in names if name]
    if body.isascii() and b"\x1b" not in body and not _ESCAPED.intersection(labels):
        return Decoded(body.decode("ascii"), "utf-8", 0)
    tried: list[Decoded] = []
    facts = _Bytes(body)
    for name in dict.fromkeys(labels):
        found = _with(body, name)
        if facts.fit(found):
            return found
        tried.append(found)
    guesses = [facts.utf8, _with(body, _detected(body, tld, facts.is_latin))]
    for found in guesses:
        if facts.fit(found):
            return found
        tried.append(found)
    # Nothing fits. A label that leaves few holes is better than a guess; a text that only looks
    # like one is told by what it is made of.
    best = min(tried, key=lambda found: found.replaced)
    if best.codec in _LATIN and not facts.is_latin:
        raise Undecodable(best.codec)
    return best


class _Bytes:
    """What the bytes of a page say about its charset."""

    def __init__(self, body: bytes) -> None:
        self.high = len(body) - len(body.translate(None, _HIGH))
        self.utf8 = _with(body, "utf-8")
        self.utf8_wrong = self.utf8.replaced
        low = len(body) - self.high
        self.utf8_right = len(self.utf8.text) - low - self.utf8_wrong
        self.is_escaped = b"\x1b$" in body
        long_runs = sum(len(run[0]) for run in _LONG_RUN.finditer(body))
        # Where letters are Latin, those beyond ASCII are few and far between.
        self.is_latin = 2 * self.high <= len(body) and 2 * long_runs <= max(self.high, 40)

    def fit(self, found: Decoded) -> bool:
        """Tell whether the bytes may be of the charset that they were decoded with."""
        right, wrong = self.utf8_right, self.utf8_wrong
        if self.is_escaped != (found.codec in _ESCAPED):
            return found.codec == "hz"
        if found.codec == "utf-8":
            return wrong == 0 or right >= 4 * wrong
        if found.codec in _ESCAPED:
            return 20 * found.replaced <= len(found.text)
        if found.codec.startswith("utf-16"):
            return False  # `_unmarked_utf16` did not think so
        is_utf8 = right >= 10 * wrong
        if found.codec in _MULTIBYTE:
            few = 20 * found.replaced <= self.high
            return few and not (is_utf8 and right >= (16 if found.replaced == 0 else 3))
        if is_utf8 and right >= 3:
            return False
        if found.codec in _LATIN and not self.is_latin:
            return False
        return 20 * found.replaced <= self.high


def _with(body: bytes, name: str) -> Decoded:
    try:
        return Decoded(body.decode(name), name, 0)
    except UnicodeDecodeError:
        pass
    errors = "rntp-wider" if name in ("euc_jp", "big5hkscs") else "replace"
    text = body.decode(name, errors)
    said = body.count("\ufffd".encode()) if name == "utf-8" else 0
    return Decoded(text, name, text.count("\ufffd") - said)


def _wider(error: UnicodeError) -> tuple[str, int]:
    """Characters that the standard's tables have and Python's do not, two bytes each."""
    assert isinstance(error, UnicodeDecodeError)
    pair = bytes(error.object[error.start : error.start + 2])
    if len(pair) == 2:
        try:
            if error.encoding == "big5hkscs":
                return pair.decode("cp950"), error.start + 2
            return _as_shift_jis(pair).decode("cp932"), error.start + 2
        except (UnicodeDecodeError, ValueError):
            pass
    return "\ufffd", error.start + 1


def _as_shift_jis(pair: bytes) -> bytes:
    """Two bytes of EUC-JP, which are a row and a cell of JIS X 0208 with NEC's extensions."""
    row, cell = pair[0] - 0xA0, pair[1] - 0xA0
    if not (1 <= row <= 94 and 1 <= cell <= 94):
        raise ValueError(pair)
    lead = (row + 1) // 2 + (0x80 if row <= 62 else 0xC0)
    if row % 2:
        return bytes([lead, cell + 0x3F + (cell >= 64)])
    return bytes([lead, cell + 0x9E])


codecs.register_error("rntp-wider", _wider)


def _unmarked_utf16(body: bytes) -> str | None:
    """UTF-16 shows by the empty halves of its ASCII characters."""
    head = body[:4096]
    half = len(head) // 2
    even, odd = head[::2].count(0), head[1::2].count(0)
    if half < 4 or max(even, odd) * 8 < half or min(even, odd) * 20 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _detected(body: bytes, tld: str, is_latin: bool) -> str:
    """What Firefox's detector takes a body for.

    One byte that a charset does not have makes the detector give up that charset. So the lines are
    asked one by one, too; and what most of them are taken for is believed if it has such bytes,
    or if the body is no Latin text, which is what a detector says that has given up all others.
    """
    if b"\x1b$" in body:
        return "iso2022_jp"
    name = _guess(body, tld)
    votes: Counter[str] = Counter()
    for part, high in _parts(body):
        votes[_guess(part, tld)] += high
    voted = votes.most_common(1)[0][0]
    gave_up = name in _LATIN and not is_latin
    return voted if gave_up or _UNREADABLE.search(_with(body, voted).text) else name


def _guess(body: bytes, tld: str) -> str:
    detector = module("chardetng_py").EncodingDetector()
    detector.feed(body, last=True)
    hint = tld.encode() if re.fullmatch("[a-z]{2,20}", tld) else None
    return codec(detector.guess(tld=hint, allow_utf8=False)) or "cp1252"


def _parts(body: bytes) -> Iterator[tuple[bytes, int]]:
    """Lines and what is between tags, joined until there are bytes to go by, and how many."""
    held: list[bytes] = []
    high = 0
    for part in re.split(rb"[<>\n]", body):
        held.append(part)
        high += len(part) - len(part.translate(None, _HIGH))
        if high >= _VOTE_BYTES:
            yield b" ".join(held), high
            held, high = [], 0
    yield b" ".join(held), high


def _without_comments(head: bytes) -> bytes:
    parts, place = [], 0
    while (begin := head.find(b"<!--", place)) >= 0:
        parts.append(head[place:begin])
        end = head.find(b"-->", begin + 2)
        if end < 0:
            return b"".join(parts)
        place = end + 3
    return b"".join([*parts, head[place:]])
