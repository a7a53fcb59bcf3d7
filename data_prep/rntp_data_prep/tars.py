"""Members of tar archives that belong together, as webdataset lays them out.

Python's tarfile takes a damaged header for the end and loses the rest without a word, and so it
does with a second archive behind the first. So what lies behind an end is looked at.
"""

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from rntp_data_prep.charsets import Undecodable, decode
from rntp_data_prep.page import MAX_PAGE_BYTES, Options, Page, Tally, Unit, readable
from rntp_data_prep.rows import parse_json, row_page
from rntp_data_prep.unpack import Broken, OnDamage, unpack_bytes

_BLOCK = tarfile.BLOCKSIZE
_KINDS = {
    "json": "json",
    **dict.fromkeys(("txt", "text", "md"), "text"),
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
}
_PACKED = ("gz", "zst", "lz4", "bz2", "xz")

Members = dict[str, list[tarfile.TarInfo]]
"""Of one key, by kind."""


def is_tar(head: bytes) -> bool:
    """Tell whether a file that begins like this is a tar archive."""
    try:
        tarfile.TarInfo.frombuf(head[:_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def tar_units(
    file: BinaryIO, source: str, options: Options, tally: Tally, on_damage: OnDamage
) -> Iterator[Unit]:
    """The pages of an archive: members of one key belong together, adjacent or not.

    notes: counts `tar_members_passed_over` (links, devices, what macOS puts beside files) and
    `tars_without_end`. on_damage: is told of a header that is none, and of a cut.
    """
    groups: dict[str, Members] = {}
    error = None
    try:
        for member in _members(file, tally, on_damage):
            folder, slash, name = member.name.rpartition("/")
            if member.isreg() and not name.startswith("._"):
                key, kind = _key(name)
                groups.setdefault(folder + slash + key, {}).setdefault(kind, []).append(member)
            elif not member.isdir():
                tally.notes["tar_members_passed_over"] += 1
    except Broken as broken:
        error = broken
    for key, members in groups.items():
        yield partial(_page, file, readable(key), members, source, options, tally)
    if error:
        raise error


def _members(file: BinaryIO, tally: Tally, on_damage: OnDamage) -> Iterator[tarfile.TarInfo]:
    """All members, of archives that were joined, too."""
    size = file.seek(0, io.SEEK_END)
    begin = file.seek(0)
    while begin < size:
        end = begin
        try:
            file.seek(begin)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    end = _end(member)
                    if end > size:
                        what = f"the member {member.name} has {size - member.offset_data} of "
                        raise Broken(f"{what}{member.size} bytes", member.offset)
                    yield member
        except Broken as broken:
            return on_damage(broken)
        except tarfile.TarError as error:
            return on_damage(Broken(str(error), end))
        begin, zeros = _behind(file, end)
        if begin < size and (zeros < 2 * _BLOCK or not _is_header(file, begin)):
            what = "a damaged header, or other bytes, behind the last member"
            return on_damage(Broken(what, begin))
        if zeros < 2 * _BLOCK:
            tally.notes["tars_without_end"] += 1


def _end(member: tarfile.TarInfo) -> int:
    data = -(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0
    return member.offset_data + data


def _behind(file: BinaryIO, place: int) -> tuple[int, int]:
    """The block of the first byte from here on that is not 0, and how many blocks' bytes are."""
    file.seek(place)
    at = place
    while chunk := file.read(1 << 20):
        rest = chunk.lstrip(b"\0")
        if rest:
            at += len(chunk) - len(rest)
            at -= (at - place) % _BLOCK
            return at, at - place
        at += len(chunk)
    return at, at - place


def _is_header(file: BinaryIO, place: int) -> bool:
    file.seek(place)
    return is_tar(file.read(_BLOCK))


def _key(name: str) -> tuple[str, str]:
    """Key and kind of a file name: by its last suffixes, since keys are written with dots, too."""
    stem, _, suffix = name.rpartition(".")
    if suffix.lower() in _PACKED:
        stem, _, suffix = stem.rpartition(".")
    kind = _KINDS.get(suffix.lower())
    if kind and stem:
        return stem, kind
    key, _, suffix = name.partition(".")
    return key, suffix.lower()


def _page(
    file: BinaryIO, key: str, members: Members, source: str, options: Options, tally: Tally
) -> Page:
    if any(len(found) > 1 for found in members.values()):
        return Page(key, source, None, "duplicate_member")
    if any(found[0].size > MAX_PAGE_BYTES for found in members.values()):
        return Page(key, source, None, "page_too_large")
    row: dict[str, Any] = {}
    try:
        if "json" in members:
            data = decode(_bytes(file, members["json"][0]), "utf-8", markup=False).text
            loaded = parse_json(data)
            row = dict(loaded) if isinstance(loaded, dict) else {}
        row |= {
            kind: _bytes(file, members[kind][0]) for kind in ("text", "html") if kind in members
        }
    except (ValueError, RecursionError, Broken, Undecodable):
        return Page(key, source, None, "malformed_member")
    if any(isinstance(value, bytes) and len(value) > MAX_PAGE_BYTES for value in row.values()):
        return Page(key, source, None, "page_too_large")
    chosen = Options() if {"text", "html"} & members.keys() else options
    return row_page(row, key, source, chosen, tally)


def _bytes(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """A member's own bytes, unpacked where it is packed."""
    file.seek(member.offset_data)
    return unpack_bytes(file.read(member.size), MAX_PAGE_BYTES)
