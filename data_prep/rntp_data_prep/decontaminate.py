"""Evaluation texts in the corpus, found where they would be rewarded.

Training rewards the continuation, so what must not be in a page is what a benchmark asks to be
continued: runs of N words that reach into an item's answer, or any run of an item that has none.
Words are compared without case and punctuation (12 in a row, as datatrove's decontamination does).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rntp.errors import DataError

N = 12
_WORD = re.compile(r"\w+")


class Benchmarks:
    """The runs of words of several benchmarks. A run is kept as 8 bytes of its hash."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """Raises DataError for a file that is missing or malformed, or has no item long enough."""
        self.digests: dict[str, str] = {}
        self._runs: dict[int, tuple[str, int]] = {}
        self._items: dict[str, int] = {}
        self._short: dict[str, int] = {}
        self._documents: dict[str, int] = dict.fromkeys(files, 0)
        self._hit: dict[str, set[int]] = {name: set() for name in files}
        for name, path in files.items():
            items = list(_items(name, path))
            self.digests[name] = hashlib.sha256(path.read_bytes()).hexdigest()
            runs = [list(_target_runs(question, answer)) for question, answer in items]
            self._items[name] = len(items)
            self._short[name] = sum(not found for found in runs)
            if self._short[name] == len(items):
                raise DataError(f"decontaminate: no item of {name} ({path}) has {N} words in a row")
            for number, found in enumerate(runs):
                self._runs |= dict.fromkeys(found, (name, number))

    def match(self, text: str) -> str | None:
        """Name of the benchmark that a text contains a run of, or None; counted in `report`."""
        if not self._runs:
            return None
        for run in _runs(_words(text)):
            if run in self._runs:
                name, number = self._runs[run]
                self._documents[name] += 1
                self._hit[name].add(number)
                return name
        return None

    def report(self) -> dict[str, dict[str, Any]]:
        """Count by benchmark: items, those too short to be found, items found, documents
        dropped."""
        return {
            name: {
                "sha256": self.digests[name],
                "items": self._items[name],
                "too_short": self._short[name],
                "items_found": len(self._hit[name]),
                "documents_dropped": self._documents[name],
            }
            for name in self._items
        }


def _items(name: str, path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """(words before the answer, words of the answer); without an answer, all are before it."""
    number = 0
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # noqa: B007
            if line.strip():
                row = json.loads(line)
                answer = row.get("answer", "") if "question" in row else ""
                yield _words(row.get("question", row.get("text"))), _words(answer)
    except OSError as error:
        raise DataError(f"decontaminate: {name}: {path} cannot be read: {error}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"decontaminate: {name}: {path}, line {number} is no JSON object with `text`, or "
            f"`question` and `answer` ({error})"
        ) from error


def _target_runs(question: list[str], answer: list[str]) -> Iterator[int]:
    if not answer:
        return _runs(question)
    return _runs([*question[-(N - 1) :], *answer])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: list[str]) -> Iterator[int]:
    for start in range(len(words) - N + 1):
        run = " ".join(words[start : start + N]).encode("utf-8")
        yield int.from_bytes(hashlib.blake2b(run, digest_size=8).digest(), "little")
