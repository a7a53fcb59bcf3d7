"""Records of WARC and ARC files, and the way on where one is damaged.

Writers get lengths wrong, leave fields out, write zeros between records. A record's length is
believed where the next record begins behind it; where not, the record ends where the next one
begins. What is no record is passed over and reported, up to a share.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rntp_data_prep.unpack import Broken, OnDamage

MAX_BLOCK_BYTES = 16 << 20
"""Largest block of a record that is kept."""
MAX_DAMAGED, MAX_DAMAGED_SHARE = 8, 0.1
"""So many damaged places of a file are passed over, and of more records this share of them."""

_SEARCHED_BYTES = 64 << 20
_HEAD_BYTES = 1 << 20
_HEAD_END = re.compile(rb"\r?\n[ \t]*\r?\n")
_NEWLINES = re.compile(rb"[\r\n \t]*")
_FIELD = re.compile(rb"[ \t]*([^\s:]{1,100})[ \t]*:[ \t]*(.*)")
_WARC = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n")
_WARC_BEGUN = re.compile(rb"W(?:A(?:R(?:C(?:/[0-9.]{0,5}[ \t]*\r?)?)?)?)?")
_NEXT_WARC = re.compile(
    rb"WARC/\d+\.\d+[ \t]*\r?\n(?=[ \t]*(?:[Ww][Aa][Rr][Cc]|[Cc][Oo][Nn][Tt][Ee][Nn][Tt])-\w{1,60})"
)
_ARC_LINE = (
    rb"(?:filedesc|https?|ftp|dns|gopher|whois)://?\S{1,8000} [0-9a-fA-F.:]{1,45} \d{8,17}"
    rb" [^\n]{1,400}? ?(\d{1,12})[ \t]*\r?\n|(?:dns|whois):\S{1,2000} [^\n]{1,400} (\d{1,12})\r?\n"
)
_ARC = re.compile(_ARC_LINE)
_NEXT_ARC = re.compile(rb"(?<=\n)(?:" + _ARC_LINE + rb")")


@dataclass(frozen=True, slots=True)
class Record:
    """A record, or a place of the file that is none, which is of kind "damaged".

    kind: WARC-Type, in lower case. block: None where it is larger than MAX_BLOCK_BYTES.
    """

    kind: str
    at: int
    url: str = ""
    content_type: str = ""
    block: bytes | None = b""
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Head:
    """What comes before a block. length: as declared; None where it is not, or is no number."""

    end: int
    kind: str
    url: str
    content_type: str
    length: int | None
    fields: dict[str, str]


def is_records(head: bytes) -> bool:
    """Tell whether a file that begins like this holds records."""
    return _WARC.match(head) is not None or _ARC.match(head) is not None


def records(
    pieces: Iterator[bytes | None], notes: Counter[str], on_damage: OnDamage, *, checked: bool
) -> Iterator[Record]:
    """The records of a file, in order. Raises Broken where too much of it is damaged.

    pieces: as of `unpack`. on_damage: is told of a last record that is cut. notes: counts
    `record_lengths_corrected`. checked: the pieces come with checksums, so that the end of the
    file is the end of what was written.
    """
    total = damaged = 0
    stream, is_first = _Stream(pieces), True
    while stream.next_segment():
        if is_first:
            is_arc, is_first = stream.starts(_ARC), False
        reader = _Segment(stream, is_arc, notes, on_damage, checked)
        for record in reader.records():
            total, damaged = total + 1, damaged + (record.kind == "damaged")
            yield record
        if stream.has_hole:
            damaged += 1
    if damaged > max(MAX_DAMAGED, MAX_DAMAGED_SHARE * total):
        raise Broken(
            f"{damaged} places among {total} records are damaged, and {MAX_DAMAGED}, or "
            f"{MAX_DAMAGED_SHARE:.0%} of the records, are passed over"
        )


class _Stream:
    """Bytes that are looked at before they are taken. at: of the first that was not taken."""

    def __init__(self, pieces: Iterator[bytes | None]) -> None:
        self._pieces = pieces
        self.data = bytearray()
        self.at = 0
        self.ended = self.has_hole = False
        self._begun = False
        self._broken: Broken | None = None

    def next_segment(self) -> bool:
        """Begin with the bytes behind a hole, or at the start; False at the end."""
        if self._broken:
            raise self._broken
        if self._begun and not self.has_hole:
            return False
        self.take(len(self.data))
        self._begun, self.ended, self.has_hole = True, False, False
        return True

    def fill(self, count: int) -> bool:
        """Have `count` bytes to look at. False where the segment ends before."""
        while len(self.data) < count and not self.ended:
            try:
                piece = next(self._pieces)
            except StopIteration:
                self.ended = True
                break
            except Broken as broken:  # behind what came before it
                self._broken, self.ended, self.has_hole = broken, True, True
                break
            if piece is None:
                self.ended = self.has_hole = True
            else:
                self.data += piece
        return len(self.data) >= count

    def take(self, count: int) -> None:
        del self.data[:count]
        self.at += count

    def starts(self, pattern: re.Pattern[bytes]) -> bool:
        self.fill(1 << 14)
        return pattern.match(self.data) is not None

    def find(self, pattern: re.Pattern[bytes], begin: int, limit: int) -> re.Match[bytes] | None:
        """The first match from `begin` on, among the first `limit` bytes."""
        searched = begin
        while True:
            found = pattern.search(self.data, searched, limit)
            if found and (found.end() < len(self.data) or self.ended):
                return found
            if len(self.data) >= limit or not self.fill(len(self.data) + 1):
                return pattern.search(self.data, searched, limit)
            # A match may begin in what was there and end in what came. ARC's are a line long.
            searched = max(begin, len(self.data) - (1 << 17))


class _Segment:
    """The records between two holes of a file."""

    def __init__(
        self,
        stream: _Stream,
        is_arc: bool,
        notes: Counter[str],
        on_damage: OnDamage,
        checked: bool,
    ) -> None:
        self._stream, self._notes, self._on_damage = stream, notes, on_damage
        self._is_arc, self._checked = is_arc, checked
        self._start, self._next = (_ARC, _NEXT_ARC) if is_arc else (_WARC, _NEXT_WARC)
        self._head: Callable[[], _Head | None] = self._arc_head if is_arc else self._warc_head

    def records(self) -> Iterator[Record]:
        stream = self._stream
        while self._skip_newlines():
            if not stream.starts(self._start):
                if stream.ended and _WARC_BEGUN.fullmatch(stream.data):
                    return self._cut(stream.at, "the head of a record has no end")
                if self._lost():
                    yield Record("damaged", stream.at)
                continue
            at, head = stream.at, self._head()
            if head is None:
                return self._cut(at, "the head of a record has no end")
            if head.length is not None and head.length > _SEARCHED_BYTES:
                record = Record(head.kind, at, head.url, head.content_type, None, head.fields)
                if not self._pass(head.end + head.length):
                    return self._cut(at, f"the record of {head.url} has no end")
                yield record
                continue
            end = self._block_end(head)
            if end is None:
                self._cut(at, self._lacks(head))
                if head.length is None or len(stream.data) < head.end + head.length:
                    return
                end = head.end + head.length  # only newlines are missing
            block = bytes(stream.data[head.end : end])
            kept = None if len(block) > MAX_BLOCK_BYTES else block
            yield Record(head.kind, at, head.url, head.content_type, kept, head.fields)
            stream.take(end)

    def _lacks(self, head: _Head) -> str:
        have = max(0, len(self._stream.data) - head.end)
        if head.length is None or have >= head.length:
            return f"the record of {head.url} is the last one and has no end"
        return f"the record of {head.url} has {have} of {head.length} bytes"

    def _cut(self, at: int, what: str) -> None:
        """Say that the last record of a segment is not whole; of a hole that was said."""
        if not self._stream.has_hole:
            self._on_damage(Broken(what, at))

    def _skip_newlines(self) -> bool:
        """To the next byte that is none; False at the end, zeros before it aside."""
        stream = self._stream
        while stream.fill(1):
            found = _NEWLINES.match(stream.data)
            assert found is not None
            if found.end() < len(stream.data):
                stream.take(found.end())
                return True
            stream.take(found.end())
        return False

    def _lost(self) -> bool:
        """Pass over what is no record, to the next one; whether it was more than padding."""
        stream, was_padding = self._stream, True
        while True:
            found = stream.find(self._next, 0, _SEARCHED_BYTES)
            count = found.start() if found else len(stream.data)
            was_padding = was_padding and stream.data.count(0, 0, count) == count
            stream.take(count)
            if found or stream.ended:
                return not (was_padding and not found)

    def _warc_head(self) -> _Head | None:
        stream = self._stream
        found = stream.find(_HEAD_END, 0, _HEAD_BYTES)
        if found is None:
            return None
        fields: dict[str, str] = {}
        name = ""
        for line in bytes(stream.data[: found.start()]).split(b"\n")[1:]:
            value = line.strip().decode("utf-8", "replace")
            if line[:1] in (b" ", b"\t") and name:
                fields[name] += f" {value}"
            elif parsed := _FIELD.match(line):
                name = parsed[1].decode("latin-1").lower()
                fields.setdefault(name, parsed[2].strip().decode("utf-8", "replace"))
        length = fields.get("content-length", "")
        url = fields.get("warc-target-uri", "")
        return _Head(
            found.end(),
            fields.get("warc-type", "").lower(),
            url[1:-1] if url.startswith("<") and url.endswith(">") else url,
            fields.get("content-type", ""),
            int(length) if re.fullmatch("[0-9]{1,15}", length) else None,
            fields,
        )

    def _arc_head(self) -> _Head | None:
        found = self._start.match(self._stream.data)
        assert found is not None
        url = bytes(found[0]).split(b" ", 1)[0].decode("utf-8", "replace")
        kind = "response" if url.startswith("http") else "other"
        return _Head(
            found.end(), kind, url, "application/http", int(found[1] or found[2] or b"0"), {}
        )

    def _block_end(self, head: _Head) -> int | None:
        """Where the block ends, as it was declared or as it is; None where the file ends before."""
        stream = self._stream
        if head.length is not None:
            end = head.end + head.length
            if stream.fill(end):
                if self._is_end(end):
                    return end
            elif stream.find(self._next, head.end, end) is None:
                return None
        found = stream.find(self._next, head.end, head.end + _SEARCHED_BYTES)
        end = found.start() if found else len(stream.data)
        begin = end
        for newline in (b"\n", b"\r", b"\n", b"\r"):
            if begin > head.end and stream.data[begin - 1 : begin] == newline:
                begin -= 1
        if not found and not self._was_written_to_its_end(begin):
            return None
        self._notes["record_lengths_corrected"] += 1
        return begin

    def _is_end(self, end: int) -> bool:
        """Whether a record ends here: newlines, and the next record or something that is none."""
        stream = self._stream
        stream.fill(end + (1 << 14))
        found = _NEWLINES.match(stream.data, end)
        assert found is not None
        if found.end() == len(stream.data):
            return self._was_written_to_its_end(end)
        if self._start.match(stream.data, found.end()):
            return True
        return found[0].startswith((b"\r\n\r\n", b"\n\n"))

    def _was_written_to_its_end(self, end: int) -> bool:
        """Whether what lies before and behind `end`, the last of the file, are two newlines."""
        tail = bytes(self._stream.data[max(0, end - 4) :])
        newlines = tail[len(tail.rstrip(b"\r\n")) :].count(b"\n")
        return self._checked or self._is_arc or newlines >= 2

    def _pass(self, count: int) -> bool:
        stream = self._stream
        while count:
            stream.fill(1)
            step = min(count, len(stream.data))
            if step == 0:
                return False
            stream.take(step)
            count -= step
        return True
