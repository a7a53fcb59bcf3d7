"""Tasks that are written down: rows of a JSONL file or of a data set of `datasets`."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rntp.config.tasks import Tasks
from rntp.errors import ConfigError, DataError

HF = "hf:"


@dataclass(frozen=True, slots=True)
class Row:
    """A task as it was found. where: file and line, or name and number. made: as of `Task`."""

    prompt: str
    answer: str
    where: str
    made: Mapping[str, Any] | None = None


def read_rows(source: str, tasks: Tasks) -> tuple[list[Row], int]:
    """Read all tasks of a file, or of `hf:NAME[:SPLIT]`, and count those that came again.

    A task that is there twice is taken once. Raises DataError where a row is malformed, or where
    one prompt has two answers, with the places; ConfigError where `datasets` is not installed.
    """
    found: dict[str, Row] = {}
    again = 0
    for where, fields in _from_hub(source) if source.startswith(HF) else _from_file(source):
        row = Row(
            _field(fields, tasks.prompt, "prompt", where),
            _cut(_field(fields, tasks.answer, "answer", where), tasks.answer_after, where),
            where,
        )
        before = found.setdefault(row.prompt, row)
        if before.answer != row.answer:
            raise DataError(
                f"{where} has the prompt of {before.where} with another answer "
                f"({before.answer!r} there, {row.answer!r} here); take one of them away"
            )
        again += before is not row
    if not found:
        raise DataError(f"{source} holds no task; write one JSON object a line")
    return list(found.values()), again


def check_apart(train: Iterable[Row], heldout: Iterable[Row]) -> None:
    """Raise DataError where both have a prompt, with the first three places."""
    known = {row.prompt: row.where for row in train}
    both = [(known[row.prompt], row.where) for row in heldout if row.prompt in known]
    if both:
        told = "; ".join(f"{one} and {other}" for one, other in both[:3])
        raise DataError(
            f"{len(both)} held-out prompts are trained on ({told}{' …' if both[3:] else ''}); take "
            "them out of data.source or of evaluation.source"
        )


def _from_file(source: str) -> Iterator[tuple[str, Any]]:
    path = Path(source)
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    yield where, json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(
                        f"{where} is not JSON ({error.msg}, column {error.colno}); write one "
                        "object a line"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give the path of a JSONL file") from (
            error
        )


def _from_hub(source: str) -> Iterator[tuple[str, Any]]:
    name, _, split = source.removeprefix(HF).partition(":")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{source} needs the package datasets; install the extra `hf` (pip install 'rntp[hf]')"
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{source}#{number}", row
    except Exception as error:  # of the readers and networks below `datasets`, of any kind
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error}); check the name, the split "
            "and the network, then give the same command again"
        ) from error


def _field(fields: Any, name: str, meaning: str, where: str) -> str:
    """A field's text. Raises DataError where there is none."""
    if not isinstance(fields, dict):
        raise DataError(f"{where} is no object; write {{{meaning!r}: …}} with one task a line")
    if name not in fields:
        raise DataError(
            f"{where} has no field {name!r} (it has {', '.join(map(repr, fields)) or 'none'}); "
            f"name the one with the {meaning} in data.tasks.{meaning}"
        )
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{where}: {name!r} is {type(value).__name__}; give a text or a number")
    if not str(value).strip():
        raise DataError(f"{where}: {name!r} is empty; give the task a {meaning}")
    return str(value).strip()


def _cut(answer: str, mark: str, where: str) -> str:
    """What stands behind the last mark. Raises DataError where there is none."""
    _, found, behind = answer.rpartition(mark) if mark else ("", "all", answer)
    if not found or not behind.strip():
        raise DataError(
            f"{where}: nothing stands behind {mark!r} in the answer; take data.tasks.answer_after "
            "away, or the row"
        )
    return behind.strip()
