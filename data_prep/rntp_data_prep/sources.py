"""Pages out of files of any kind that web data comes in.

A file is checked whole before it is read: gzip and zstd streams are followed to their end, since
their readers, FastWARC's and zstandard's among them, take a cut file for a short one. What a file
holds is hostile: lines and members have a largest size, and JSON is taken as JSON says.
"""

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from rntp.errors import DataError
from rntp_data_prep.config import HF, LINES, WARC, WET, is_hub
from rntp_data_prep.extract import (
    FETCH_AGAIN,
    MAX_PAGE_BYTES,
    Page,
    check_source,
    gunzip,
    hashed_chunks,
    module,
    read_pages,
)

_WINDOW_BYTES = 128 << 20
# One chunk of zstd may decompress to 33,000 times its size.
_ZSTD_CHUNK_BYTES = 2048
_TEXT_KEYS = ("text", "content", "raw_content")


def check(source: str) -> str:
    """Identity of a source, hexadecimal SHA-256; makes sure that a file is complete.

    Raises DataError for one that is cut or damaged. Of a `datasets` source only the name is known.
    """
    if is_hub(source):
        return hashlib.sha256(source.encode()).hexdigest()
    path = Path(source)
    if source.endswith((*WARC, *WET)):
        return check_source(path)
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            chunks = hashed_chunks(file, digest)
            if source.endswith(".gz"):
                chunks = gunzip(chunks)
            elif source.endswith(".zst"):
                chunks = _unzstd(b for c in chunks for b in _pieces(c))
            for _ in chunks:
                pass
        if source.endswith(".tar"):
            _check_tar(path)
    except (zlib.error, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path} is truncated or damaged ({error}); {FETCH_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def pages(source: str) -> Iterator[Page]:
    """Every page of a checked source, in order, usable or not.

    Raises DataError for what cannot be parsed at all, ConfigError where a reader is not installed.
    """
    if is_hub(source):
        return _hub(source)
    path = Path(source)
    readers: list[tuple[tuple[str, ...], Callable[[Path], Iterator[Page]]]] = [
        (WET, _wet),
        (WARC, read_pages),
        (LINES, _json_lines),
        ((".parquet",), _parquet),
        ((".tar",), _tar),
        ((".html", ".htm", ".txt", ".md"), _one_page),
    ]
    return next(read(path) for suffixes, read in readers if source.endswith(suffixes))


def _wet(path: Path) -> Iterator[Page]:
    warc = module("fastwarc.warc")
    kind = warc.WarcRecordType.conversion
    with open(path, "rb") as file:
        for record in warc.ArchiveIterator(file, record_types=kind, parse_http=False):
            url = record.headers.get("WARC-Target-URI", "")
            declared = record.content_length
            if declared > MAX_PAGE_BYTES:
                yield Page(url, path.name, None, "page_too_large")
                continue
            body = record.reader.read()
            if len(body) != declared:
                raise DataError(
                    f"{path}: the record of {url} has {len(body)} of {declared} bytes; "
                    f"{FETCH_AGAIN}"
                )
            yield _text_page(url, path.name, body)


def _json_lines(path: Path) -> Iterator[Page]:
    with _open_lines(path) as file:
        for number, line in enumerate(_lines(file), 1):
            place = f"{path.name}#{number}"
            if line is None:
                yield Page(place, path.name, None, "page_too_large")
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
                yield _row_page(row, place, path.name)
            except (ValueError, RecursionError):
                yield Page(place, path.name, None, "malformed_line")


def _parquet(path: Path) -> Iterator[Page]:
    parquet = module("pyarrow.parquet")
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield _row_page(row, f"{path.name}#{number}", path.name)
    except (OSError, module("pyarrow").ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}; {FETCH_AGAIN}") from error


def _hub(source: str) -> Iterator[Page]:
    """`hf:NAME`, `hf:NAME:SPLIT`, or `hf:FOLDER`: what `datasets` streams."""
    name, _, split = source.removeprefix(HF).partition(":")
    datasets = module("datasets")
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield _row_page(row, f"{name}#{number}", name)
    except Exception as error:  # of the readers and networks below `datasets`, of any kind
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error}); check the name, the split "
            "and the network, then give the same command again"
        ) from error


def _tar(path: Path) -> Iterator[Page]:
    """A webdataset tar: members of one key belong together, adjacent or not."""
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if not member.isreg():
                continue  # links and devices have no bytes of their own
            folder, slash, name = member.name.rpartition("/")
            key, _, suffix = name.partition(".")
            parts = members.setdefault(folder + slash + key, {})
            parts[suffix if suffix not in parts else f"{suffix} again"] = member
        for key, parts in members.items():
            yield _tar_page(tar, key, parts, path.name)


def _tar_page(
    tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo], source: str
) -> Page:
    if any(name.endswith("again") for name in parts):
        return Page(key, source, None, "duplicate_member")
    if any(member.size > MAX_PAGE_BYTES for member in parts.values()):
        return Page(key, source, None, "page_too_large")

    def read(name: str) -> bytes:
        file = tar.extractfile(parts[name])
        assert file is not None
        return file.read()

    row: dict[str, Any] = {}
    try:
        if "json" in parts:
            loaded = json.loads(read("json").decode("utf-8"), parse_constant=_no_constant)
            row = dict(loaded) if isinstance(loaded, dict) else {}
        for name, field in (("txt", "text"), ("html", "html")):
            if name in parts:
                row[field] = read(name).decode("utf-8")
        return _row_page(row, key, source)
    except (ValueError, RecursionError):
        return Page(key, source, None, "malformed_member")


def _one_page(path: Path) -> Iterator[Page]:
    if path.stat().st_size > MAX_PAGE_BYTES:
        yield Page(path.as_posix(), path.name, None, "page_too_large")
        return
    body = path.read_bytes()
    if path.suffix in (".html", ".htm"):
        encodings = module("resiliparse.parse.encoding")
        encoding = encodings.detect_encoding(body, from_html_meta=True)
        yield Page(path.as_posix(), path.name, encodings.bytes_to_str(body, encoding))
        return
    yield _text_page(path.as_posix(), path.name, body)


def _text_page(url: str, source: str, body: bytes) -> Page:
    try:
        return Page(url, source, None, text=body.decode("utf-8"))
    except UnicodeDecodeError:
        return Page(url, source, None, "undecodable")


def _row_page(row: object, place: str, source: str) -> Page:
    """A page of a row with `html`, or one of `text`, `content`, `raw_content`."""
    if not isinstance(row, dict):
        return Page(place, source, None, "malformed_line")
    url, title = (row.get(key) for key in ("url", "title"))
    url = url if isinstance(url, str) and url else place
    title = title if isinstance(title, str) else ""
    found = {key: row.get(key) for key in ("html", *_TEXT_KEYS) if isinstance(row.get(key), str)}
    if not found:
        return Page(url, source, None, "no_text_field")
    key, value = next(iter(found.items()))
    try:
        f"{url}{title}{value}".encode()
    except UnicodeEncodeError:  # a lone surrogate: JSON can write it, UTF-8 cannot
        return Page(place, source, None, "not_unicode")
    if key == "html":
        return Page(url, source, value, title=title)
    return Page(url, source, None, text=value, title=title)


def _open_lines(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        zstandard = module("zstandard")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        file = path.open("rb")
        raw = decompressor.stream_reader(file, read_across_frames=True, closefd=True)
        return io.BufferedReader(raw, 1 << 16)
    return path.open("rb")


def _lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Lines with their ends; None for one that is too long, of which no more is held."""
    while line := file.readline(MAX_PAGE_BYTES + 1):
        if len(line) <= MAX_PAGE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_PAGE_BYTES)
        yield None


def _pieces(chunk: bytes) -> Iterator[bytes]:
    for start in range(0, len(chunk), _ZSTD_CHUNK_BYTES):
        yield chunk[start : start + _ZSTD_CHUNK_BYTES]


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress all frames. Raises EOFError where the last one is cut or damaged."""
    zstandard = module("zstandard")
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
    frame, begun = decompressor.decompressobj(), False
    try:
        for chunk in chunks:
            while chunk:
                begun = True
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, begun = decompressor.decompressobj(), False
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if begun:
        raise EOFError("the last zstd frame has no end")


def _check_tar(path: Path) -> None:
    """Raises EOFError where tarfile would stop early: it takes a damaged header for the end."""
    with tarfile.open(path) as tar:
        end = 0
        for member in tar:
            end = (
                member.offset_data + -(-member.size // 512) * 512
                if member.isreg()
                else (member.offset_data)
            )
    with open(path, "rb") as file:
        file.seek(end)
        rest = _rest(file)
    if rest < 1024:
        raise EOFError(f"the archive has no end after byte {end}")


def _rest(file: BinaryIO) -> int:
    """Bytes from here to the end of the file. Raises EOFError if one of them is not 0."""
    start, count = file.tell(), 0
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise EOFError(f"a damaged header, or other bytes, after byte {start}")
        count += len(chunk)
    return count


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
