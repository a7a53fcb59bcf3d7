"""The books of a part: every page that came in is kept, or dropped with a reason.

A part is the share of one source file in a preparation. Its folder holds the kept documents, the
ledger of the dropped ones, and last a record with the hashes of both: a part without a record, or
whose files are not the record's, does not exist and is made again.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from datatrove.data import Document

from rntp.errors import DataError

KEPT, DROPPED, RECORD = "kept.jsonl", "dropped.jsonl", "record.json"
_PAGES, _PAGES_PER_NOTE = "pages", 100  # for those who wait


class Books:
    """Counts of one part, and its two files while it is written.

    notes: what was changed in kept or dropped pages, by name (neutralised markers, masked
    addresses). Steps of one pipeline share one; it opens its files when the part begins.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = 0
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self._files: dict[str, IO[str]] = {}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (KEPT, DROPPED):
            self._files[name] = open(self.folder / name, "w", encoding="utf-8", newline="\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def count_page(self) -> None:
        """One more page came in."""
        self.pages += 1
        if self._files and self.pages % _PAGES_PER_NOTE == 0:
            (self.folder / _PAGES).write_text(str(self.pages))

    def keep(self, document: Document) -> None:
        """Write a document that went through every step."""
        self.kept += 1
        row = {"id": document.id, "text": document.text, "metadata": document.metadata}
        self._files[KEPT].write(json.dumps(row, ensure_ascii=False) + "\n")

    def drop(self, url: str, source: str, reason: str) -> None:
        """Write a page that is left out."""
        self.dropped[reason] += 1
        self._files[DROPPED].write(ledger_line(url, source, reason))

    def close(self, key: str) -> None:
        """Write the record. Raises DataError where the counts do not add up.

        key: identity of the source and of everything that decides what becomes of it.
        """
        if self.pages != self.kept + self.dropped.total():
            raise DataError(
                f"{self.folder}: {self.pages} pages came in, {self.kept} were kept and "
                f"{self.dropped.total()} dropped; this is a fault of a step, please report it"
            )
        hashes = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            hashes[name] = sha256(self.folder / name)
        record = {
            "key": key,
            "pages": self.pages,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "notes": dict(sorted(self.notes.items())),
            "files": hashes,
        }
        temporary = self.folder / f".{RECORD}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / RECORD)


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The record of a part, or None if it was not finished, or for another key, or is damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["key"] != key:
            return None
        whole = all(sha256(folder / name) == value for name, value in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def pages_so_far(folder: Path) -> int:
    """Pages that a part has read, to the hundred below; 0 if it has not begun."""
    try:
        return int((folder / _PAGES).read_text())
    except (OSError, ValueError):  # not there yet, or being written
        return 0


def kept_documents(folder: Path) -> Iterator[Document]:
    """The documents of a finished part, in order."""
    with open(folder / KEPT, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document(media=[], **json.loads(line))


def pack_ids(ids: Any) -> str:
    """Token ids, a sequence of ints or an array, as a part keeps them; see `unpack_ids`."""
    return base64.b64encode(np.asarray(ids, dtype="<u4").tobytes()).decode("ascii")


def unpack_ids(packed: str) -> np.ndarray:
    """uint32 [n]: what `pack_ids` was given."""
    return np.frombuffer(base64.b64decode(packed), dtype="<u4")


def ledger_line(url: str, source: str, reason: str) -> str:
    """One line of the ledger of dropped pages."""
    entry: Mapping[str, str] = {"url": url, "source": source, "reason": reason}
    # backslashreplace: an address may hold what has no UTF-8 form.
    line = json.dumps(entry, ensure_ascii=False) + "\n"
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
