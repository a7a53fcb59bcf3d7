"""Compressed files, told by their first bytes and followed to their end, member by member.

Readers of gzip and zstd take a cut file for a short one, FastWARC's and zstandard's among them;
here a member that has no end, or is not what its checksum says, is reported. Names say little: a
gzip file may be called .warc, and a plain one .gz.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from rntp_data_prep.packages import module

WINDOW_BYTES = 256 << 20
"""Largest window of zstd: what a frame may ask a reader to remember."""

# Small, because one chunk of gzip may decompress to a thousand times its size, and one of zstd to
# 33,000 times.
_CHUNK_BYTES = {"zstd": 1 << 11}
_OTHER_CHUNK_BYTES = 1 << 16
_HELD_BYTES = 4 << 20
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = tuple(bytes([n, 0x2A, 0x4D, 0x18]) for n in range(0x50, 0x60))
_DICTIONARY = b"\x5d\x2a\x4d\x18"  # of .warc.zst
_MAGIC: dict[bytes, str] = {
    b"\x1f\x8b\x08": "gzip",
    _ZSTD: "zstd",
    **dict.fromkeys(_SKIPPABLE, "zstd"),
    b"\x04\x22\x4d\x18": "lz4",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
_LONGEST_MAGIC = 6


class Broken(Exception):
    """Damage in a file. at: byte of the file as it lies on disk, or None where it is not known."""

    def __init__(self, what: str, at: int | None = None) -> None:
        super().__init__(what)
        self.what, self.at = what, at


OnDamage = Callable[[Broken], None]
"""Raises, or lets the reading go on behind the damage."""


def refuse(broken: Broken) -> None:
    """Raise what is broken."""
    raise broken


def compression(head: bytes) -> str | None:
    """Name of the compression whose files begin like this; None for a plain file."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def unpack(file: BinaryIO, on_damage: OnDamage = refuse) -> Iterator[bytes | None]:
    """The decompressed bytes of a file in pieces; of a plain file its own.

    None stands for what is missing where `on_damage` let the reading go on: then the next member
    comes, if there is one. A member of up to 4 MiB is not given before its checksum was right.
    Zeros behind the last member are padding.
    """
    head = file.read(_LONGEST_MAGIC)
    name = compression(head)
    if name is None:
        return _plain(head, file)
    return _Members(name, head, file, on_damage).pieces()


def unpack_bytes(data: bytes, limit: int) -> bytes:
    """The decompressed bytes of a whole file, at most one more than `limit`. Raises Broken."""
    import io

    parts, count = [], 0
    for piece in unpack(io.BytesIO(data)):
        assert piece is not None
        parts.append(piece)
        count += len(piece)
        if count > limit:
            break
    return b"".join(parts)[: limit + 1]


def _plain(head: bytes, file: BinaryIO) -> Iterator[bytes | None]:
    yield head
    while chunk := file.read(_OTHER_CHUNK_BYTES):
        yield chunk


class _Members:
    """A file of one compression: its members, one behind the other."""

    def __init__(self, name: str, head: bytes, file: BinaryIO, on_damage: OnDamage) -> None:
        self._name, self._file, self._on_damage = name, file, on_damage
        self._data, self._at = head, 0  # what is not decompressed yet, and where it begins
        self._chunk = _CHUNK_BYTES.get(name, _OTHER_CHUNK_BYTES)
        self._dictionary: Any = None

    def pieces(self) -> Iterator[bytes | None]:
        while self._fill(_LONGEST_MAGIC):
            if not self._data.strip(b"\0"):  # padding, unless something follows it
                self._pass(len(self._data))
                continue
            try:
                if compression(self._data.lstrip(b"\0")) != self._name:
                    raise Broken(f"what follows is no {self._name}", self._at)
                self._pass(len(self._data) - len(self._data.lstrip(b"\0")))
                yield from self._member()
            except Broken as broken:
                self._on_damage(broken)
                yield None
                self._seek_member()

    def _member(self) -> Iterator[bytes]:
        """The bytes of the member that begins here. Raises Broken."""
        if self._data.startswith(_SKIPPABLE):
            self._skippable()
            return
        begin, member, held, size = self._at, self._decompressor(), [], 0
        while True:
            try:
                piece = member.decompress(self._data)
            except (zlib.error, OSError, ValueError, lzma.LZMAError, RuntimeError) as error:
                raise Broken(f"{self._name}: {error}", begin) from error
            except _zstd_error() as error:
                raise Broken(_zstd_words(str(error)), begin) from error
            self._at += len(self._data)
            self._data = b""
            held.append(piece)
            size += len(piece)
            if member.eof:
                self._data = member.unused_data or b""
                self._at -= len(self._data)
                yield from held
                return
            if size > _HELD_BYTES:
                yield from held
                held = []
            if not self._fill(1):
                yield from held  # what came before the cut is what was written
                raise Broken(f"the last {self._name} member has no end", begin)

    def _fill(self, count: int) -> bool:
        while len(self._data) < count and (chunk := self._file.read(self._chunk)):
            self._data += chunk
        return bool(self._data)

    def _pass(self, count: int) -> None:
        self._data, self._at = self._data[count:], self._at + count

    def _seek_member(self) -> None:
        """To the next place behind this one that looks like the start of a member."""
        magics = [magic for magic, name in _MAGIC.items() if name == self._name]
        self._pass(min(1, len(self._data)))
        while self._fill(_LONGEST_MAGIC):
            found = [n for magic in magics if (n := self._data.find(magic)) >= 0]
            if found:
                return self._pass(min(found))
            self._pass(max(1, len(self._data) - _LONGEST_MAGIC + 1))
            if not (chunk := self._file.read(self._chunk)):
                return self._pass(len(self._data))
            self._data += chunk

    def _decompressor(self) -> Any:
        if self._name == "gzip":
            return zlib.decompressobj(wbits=31)
        if self._name == "bzip2":
            return bz2.BZ2Decompressor()
        if self._name == "xz":
            return lzma.LZMADecompressor(memlimit=WINDOW_BYTES)
        if self._name == "lz4":
            return module("lz4.frame").LZ4FrameDecompressor()
        zstandard = module("zstandard")
        settings = {"dict_data": self._dictionary} if self._dictionary else {}
        return zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES, **settings).decompressobj()

    def _skippable(self) -> None:
        """Pass over a frame that holds no data, but maybe the dictionary of those that do."""
        begin, is_first = self._at, self._at == 0
        self._fill(8)
        size = int.from_bytes(self._data[4:8], "little")
        is_dictionary = is_first and self._data.startswith(_DICTIONARY)
        self._pass(8)
        parts, left = [], size
        while left and self._fill(1):
            parts.append(self._data[:left] if is_dictionary else b"")
            step = min(left, len(self._data))
            self._pass(step)
            left -= step
        if left:
            raise Broken("the last zstd frame has no end", begin)
        if is_dictionary:
            zstandard, data = module("zstandard"), b"".join(parts)
            if data.startswith(_ZSTD):
                data = unpack_bytes(data, WINDOW_BYTES)
            self._dictionary = zstandard.ZstdCompressionDict(data)


def _zstd_error() -> type[Exception]:
    error: type[Exception] = module("zstandard").ZstdError
    return error


def _zstd_words(said: str) -> str:
    if "memory" not in said:
        return f"zstd: {said}"
    most = WINDOW_BYTES >> 20
    return (
        f"zstd: {said}: a frame asks for a window of more than {most} MiB; "
        f"pack it again with `zstd -d --long=31 | zstd`"
    )
