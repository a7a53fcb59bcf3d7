"""Pages out of files of any kind that web data comes in.

A file is gone through whole before its first page is used (`check`), by the code that reads it:
what is cut or damaged shows then, with the place and the number of pages before it. What a file
holds is told by its first bytes before it is told by its name. What it holds is hostile: pages,
lines and members have a largest size.
"""

import contextlib
import hashlib
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from rntp.errors import DataError
from rntp_data_prep.archived import decoded_page, record_units
from rntp_data_prep.config import HF, PACKED, is_hub
from rntp_data_prep.packages import module
from rntp_data_prep.page import MAX_PAGE_BYTES, Options, Page, Tally, Unit, readable
from rntp_data_prep.records import is_records
from rntp_data_prep.rows import json_units, row_page
from rntp_data_prep.tables import parquet_units
from rntp_data_prep.tars import is_tar, tar_units
from rntp_data_prep.unpack import Broken, OnDamage, unpack

FETCH_AGAIN = "fetch the file again, or go on with what is whole in it: `damaged: use`"

_HASHED_BYTES = 1 << 20
_HEAD_BYTES = 1 << 14
_LFS = b"version https://git-lfs.github.com/spec/"
_KINDS = {
    **dict.fromkeys((".warc", ".wet", ".arc", ".wacz"), "records"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "rows"),
    ".parquet": "table",
    **dict.fromkeys((".tar", ".tgz"), "tar"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".txt", ".md"), "text"),
}


def check(source: str, options: Options | None = None) -> str:
    """Identity of a source, hexadecimal SHA-256; makes sure that a file can be read to its end.

    Raises DataError for one that is cut or damaged, unless `options` let it be used. Of a
    `datasets` source only the name is known.
    """
    if is_hub(source):
        return hashlib.sha256(source.encode()).hexdigest()
    digest = hashlib.sha256()
    try:
        with open(source, "rb") as file:
            while chunk := file.read(_HASHED_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    for _ in _units(source, options or Options(), Tally()):
        pass
    return digest.hexdigest()


def pages(
    source: str, options: Options | None = None, tally: Tally | None = None
) -> Iterator[Page]:
    """Every page of a source, in order, usable or not. tally: counts what was done to pages.

    Raises DataError for damage that `options` do not let pass, and at the end of a source of which
    no page can be used; ConfigError where a reader is not installed.
    """
    options, tally = options or Options(), tally or Tally()
    reasons: Counter[str] = Counter()
    usable = 0
    for unit in _units(source, options, tally):
        page = unit()
        if page.html is None and page.text is None:
            reasons[page.reason] += 1
        else:
            usable += 1
        yield page
    if usable == 0:
        raise DataError(_nothing_usable(source, reasons, tally))


def _nothing_usable(source: str, reasons: Counter[str], tally: Tally) -> str:
    kind = "usable page"
    if not is_hub(source) and _kind_of_name(source) == "records":
        kind = "HTML page (HTTP response, status 200) or text"
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    message = f"{source} holds no {kind} ({told or 'it is empty'}); "
    if tally.fields:
        message += (
            f"its rows have the fields {', '.join(tally.fields)}: name the one with the text as "
            "`text_field`, or the one with HTML as `html_field` (page.text is text within page); "
            "or "
        )
    return f"{message}leave it out of `sources`"


def _units(source: str, options: Options, tally: Tally) -> Iterator[Unit]:
    """The pages of a source, unread. Raises DataError as `pages` does, but for an unusable one."""
    if is_hub(source):
        yield from _hub(source, options, tally)
        return
    count, name = 0, readable(Path(source).name)
    found: list[Broken] = []

    def on_damage(broken: Broken) -> None:
        if options.damaged == "refuse":
            raise broken
        found.append(broken)

    def damaged() -> Iterator[Unit]:
        while found:
            yield partial(Page, f"{name}@{found.pop(0).at or 0}", name, None, "damaged")

    try:
        for unit in _file_units(Path(source), options, tally, on_damage):
            yield from damaged()
            yield unit
            count += 1
        yield from damaged()
    except Broken as broken:
        place = "" if broken.at is None else f" at byte {broken.at}"
        raise DataError(
            f"{source} is truncated or damaged{place}, after {count} pages: {broken.what}; "
            f"{FETCH_AGAIN}"
        ) from broken
    except OSError as error:
        raise DataError(f"{source} cannot be read, after {count} pages: {error}") from error


def _file_units(path: Path, options: Options, tally: Tally, on_damage: OnDamage) -> Iterator[Unit]:
    name = readable(path.name)
    with open(path, "rb") as file:
        head, is_packed = _head(file)
        kind = _kind(name, head)
        if kind == "wacz":
            yield from _wacz(path, tally, on_damage)
            return
        if kind in ("table", "tar"):
            with _seekable(file, is_packed, on_damage) as plain:
                if kind == "table":
                    yield from parquet_units(plain, name, options, tally, on_damage)
                else:
                    yield from tar_units(plain, name, options, tally, on_damage)
            return
        pieces = unpack(file, on_damage)
        if kind == "records":
            yield from record_units(pieces, name, tally, on_damage, checked=is_packed)
        elif kind == "rows":
            yield from json_units(pieces, name, options, tally)
        else:
            yield from _one_page(pieces, path, kind == "html", tally)


def _head(file: BinaryIO) -> tuple[bytes, bool]:
    """The first decompressed bytes of a file, which is left at its start, and whether it is
    packed."""
    raw, head = file.read(_HEAD_BYTES), b""
    file.seek(0)
    if raw.startswith(_LFS):
        raise Broken("it is a pointer of Git LFS and not the file; `git lfs pull` gets that")
    with contextlib.suppress(Broken):  # whoever reads the file will find it
        for piece in unpack(file):
            head += piece or b""
            if len(head) >= _HEAD_BYTES:
                break
    file.seek(0)
    return head, not raw.startswith(head[:64])


def _kind(name: str, head: bytes) -> str:
    """What a file is: by its content, unless its name says that it is a text of one page."""
    named = _kind_of_name(name)
    if named in ("html", "text"):
        return named
    if head.startswith(b"PK\x03\x04"):
        return "wacz"
    if head.startswith(b"PAR1"):
        return "table"
    if is_records(head.lstrip(b"\0\r\n")):
        return "records"
    if is_tar(head) and (named == "tar" or head[257:262] == b"ustar"):
        return "tar"
    return named


def _kind_of_name(name: str) -> str:
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    while suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return _KINDS[suffixes[-1]]


@contextlib.contextmanager
def _seekable(file: BinaryIO, is_packed: bool, on_damage: OnDamage) -> Iterator[BinaryIO]:
    """A file that can be read anywhere: a packed one is unpacked into the folder for temporary
    files."""
    if not is_packed:
        yield file
        return
    with tempfile.TemporaryFile() as plain:
        for piece in unpack(file, on_damage):
            if piece is None:
                break
            plain.write(piece)
        plain.seek(0)
        yield cast(BinaryIO, plain)


def _wacz(path: Path, tally: Tally, on_damage: OnDamage) -> Iterator[Unit]:
    """The records of a web archive in a zip file (https://specs.webrecorder.net/wacz)."""
    source = readable(path.name)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.startswith("archive/") and n[-1] != "/"]
            for name in names:
                with archive.open(name) as member:
                    file = cast(BinaryIO, member)
                    _, is_packed = _head(file)
                    pieces = unpack(file, on_damage)
                    yield from record_units(pieces, source, tally, on_damage, checked=is_packed)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        on_damage(Broken(f"zip: {error}"))


def _hub(source: str, options: Options, tally: Tally) -> Iterator[Unit]:
    """`hf:NAME`, `hf:NAME:SPLIT`, or `hf:FOLDER`: what `datasets` streams."""
    name, _, split = source.removeprefix(HF).partition(":")
    datasets = module("datasets")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield partial(row_page, row, f"{name}#{number}", name, options, tally)
    except Exception as error:  # of the readers and networks below `datasets`, of any kind
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error}); check the name, the split "
            "and the network, then give the same command again"
        ) from error


def _one_page(
    pieces: Iterator[bytes | None], path: Path, is_html: bool, tally: Tally
) -> Iterator[Unit]:
    parts, size = [], 0
    place, name = readable(path.as_posix()), readable(path.name)
    for piece in pieces:
        parts.append(piece or b"")
        size += len(parts[-1])
        if size > MAX_PAGE_BYTES:
            yield partial(Page, place, name, None, "page_too_large")
            return
    yield partial(decoded_page, b"".join(parts), "", place, name, is_html, tally)
