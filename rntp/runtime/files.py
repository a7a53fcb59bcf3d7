"""Files that are either whole or absent, and JSON that any reader accepts.

A file appears under its name only once its bytes are on the disk: written beside it, fsynced,
renamed over it. OSError (disk full, no permission) passes through to the caller.
"""

import gzip
import json
import math
import os
import zlib
from collections.abc import Iterable
from pathlib import Path


def write_json(path: Path, obj: object) -> None:
    """Write `obj` to `path` atomically, indented; non-finite floats become null.

    Raises TypeError for what JSON cannot hold, before anything is written.
    """
    write_text_atomic(path, json.dumps(_finite(obj), ensure_ascii=False, indent=2) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, so that a reader finds the old content or the new."""
    write_bytes_atomic(path, _encode(text))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, so that a reader finds the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; for a folder, the names in it."""
    # Without the folder's a power cut may lose a rename although the bytes of the file are safe.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_line(obj: object) -> bytes:
    """One line of JSON with its newline; non-finite floats become null (JSON has no NaN).

    Raises TypeError for what JSON cannot hold.
    """
    text = json.dumps(_finite(obj), ensure_ascii=False, separators=(", ", ": "))
    return _encode(text + "\n")


def json_lines(objects: Iterable[object]) -> bytes:
    """One line of JSON for each object."""
    return b"".join(json_line(obj) for obj in objects)


def complete_lines(path: Path) -> list[bytes]:
    """The lines of a file with their newlines, without a last line that a kill left half-written.

    Only b"\\n" ends a line: str.splitlines would also cut at U+2028, which texts may hold.
    """
    lines = _content(path).split(b"\n")[:-1]
    return [line + b"\n" for line in lines]


def read_json_lines(path: Path) -> list[dict]:
    """The objects of a JSON Lines file; a half-written last line is left out.

    Raises ValueError that names the file and the line when a complete line is no JSON object.
    """
    return [parse_line(path, number, line) for number, line in enumerate(complete_lines(path), 1)]


def parse_line(path: Path, number: int, line: bytes) -> dict:
    """The object of one complete line; ValueError names `path` and the 1-based `number`."""
    try:
        obj = json.loads(line)
    except ValueError as error:  # of which both JSON and UTF-8 errors are kinds
        raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(obj, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object")
    return obj


def _content(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in .gz; ValueError where they are cut."""
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error})") from error


def _finite(obj: object) -> object:
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if isinstance(obj, dict):
        return {key: _finite(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_finite(value) for value in obj]
    return obj


def _encode(text: str) -> bytes:
    # A lone surrogate has no UTF-8 form; written as \udXXX it is a valid escape inside JSON text.
    return text.encode("utf-8", "backslashreplace")
