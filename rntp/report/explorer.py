"""The thoughts of training that a reader can search, sort and filter in the page.

The page holds them as JSON and draws a few rows at a time, so their number is bounded here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from rntp.report.numbers import clip, visible
from rntp.run.log import read_rollouts
from rntp.run.rollout_files import rollout_files, unpacked_bytes
from rntp.runtime.provenance import redact

MAX_STEPS = 48  # of one run
MAX_ROWS = 2400  # of all runs together
MAX_TEXT_CHARS = 1200
_MAX_READ_BYTES = 1 << 28  # of the rollouts of one run
_TAIL_CHARS = 240
_TOKEN_CHARS = 80


@dataclass(frozen=True, slots=True)
class StepSample:
    """Some thoughts of one step. total: how many the step has."""

    step: int
    rows: list[dict]
    total: int


@dataclass(frozen=True, slots=True)
class Explorer:
    """What the page's table of thoughts is made from.

    data: JSON for a script element. steps: those with thoughts. sources: labels of the runs or
    arms. note: how the thoughts were chosen, "" where none is left out.
    """

    data: Markup
    steps: list[int]
    sources: list[str]
    schemes: list[str]
    note: str


def shown_steps(folder: Path) -> list[int]:
    """List the steps of a run whose thoughts are read, spread evenly, the first and last included.

    As many as can be read in a second or two: rollouts of a large run take megabytes a step.
    """
    files = rollout_files(folder)
    if not files:
        return []
    mean_bytes = sum(unpacked_bytes(p) for paths in files.values() for p in paths) / len(files)
    readable = int(_MAX_READ_BYTES / max(mean_bytes, 1.0))
    return spread(list(files), max(2, min(MAX_STEPS, readable)))


def read_sample(folder: Path, most: int) -> list[StepSample]:
    """Read at most about `most` thoughts of a run. Raises ConfigError when a file is damaged."""
    steps = shown_steps(folder)
    samples = []
    for step in steps:
        rows = read_rollouts(folder, step)
        samples.append(StepSample(step, choose(rows, max(4, most // len(steps))), len(rows)))
    return samples


def redact_samples(samples: Sequence[StepSample], secrets: Sequence[str]) -> list[StepSample]:
    """Cut secrets out of the thoughts."""
    return [replace(sample, rows=redact(sample.rows, secrets)) for sample in samples]


def choose(rows: Sequence[dict], most: int) -> list[dict]:
    """Pick the best and the worst advantages, a quarter each, and an even sample of the others."""
    if len(rows) <= most:
        return list(rows)
    known = [n for n, row in enumerate(rows) if row["advantage"] is not None]
    known.sort(key=lambda n: rows[n]["advantage"])
    ends = set(known[: most // 4]) | set(known[len(known) - most // 4 :])
    others = [n for n in range(len(rows)) if n not in ends]
    return [rows[n] for n in sorted(ends | set(spread(others, most - len(ends))))]


def spread(values: Sequence[int], count: int) -> list[int]:
    """`count` of the values at even distances, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    if count < 2:
        return list(values[:count])
    last = len(values) - 1
    return [values[round(n * last / (count - 1))] for n in range(count)]


def explorer(sources: Sequence[tuple[str, Sequence[StepSample]]], bound: float) -> Explorer:
    """Put the thoughts into the page's JSON. sources: (label, samples). bound: of the colours."""
    schemes = list(
        dict.fromkeys(
            name
            for _, samples in sources
            for sample in samples
            for row in sample.rows
            for name in row["rewards"]
        )
    )
    places: dict[tuple[object, ...], int] = {}
    place_rows: list[dict] = []
    thoughts = []
    for source, (_, samples) in enumerate(sources):
        for sample in samples:
            for row in sample.rows:
                key = (source, sample.step, row.get("ordinal"), row["document_id"], row["position"])
                if key not in places:
                    places[key] = len(place_rows)
                    place_rows.append(_place(source, sample.step, row))
                thoughts.append(_thought(places[key], row, schemes))
    data = {
        "bound": bound,
        "sources": [label for label, _ in sources],
        "schemes": schemes,
        "places": place_rows,
        "thoughts": thoughts,
    }
    return Explorer(
        data=script_json(data),
        steps=sorted({sample.step for _, samples in sources for sample in samples}),
        sources=[label for label, _ in sources],
        schemes=schemes,
        note=_note(sources),
    )


def script_json(value: object) -> Markup:
    """JSON that cannot end the script element it stands in, whatever the texts are."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def place_name(row: dict) -> str:
    """The document by its title, or by its id where it has none; and how much of it a reading
    window lost, where there is one."""
    lost = f", {row['lost_tokens']} tokens lost" if "lost_tokens" in row else ""
    return clip(str(row.get("title") or row["document_id"]), 120) + lost


def _place(source: int, step: int, row: dict) -> dict:
    return {
        "source": source,
        "step": step,
        "name": place_name(row),
        "id": clip(str(row["document_id"]), 120),
        "position": row["position"],
        "tail": row["prefix_tail"][-_TAIL_CHARS:],
        "tokens": [visible(clip(token, _TOKEN_CHARS)) for token in row["continuation_tokens"]],
    }


def _thought(place: int, row: dict, schemes: Sequence[str]) -> dict:
    return {
        "place": place,
        "text": clip(row["thought"], MAX_TEXT_CHARS),
        "answer": clip(row["answer"], MAX_TEXT_CHARS),
        "closed": bool(row["closed"]),
        "length": row["num_tokens"],
        "gain": _rounded(row["gain"]),
        "advantage": _rounded(row["advantage"]),
        "reward": _rounded(row["reward"]),
        "rewards": [_rounded(row["rewards"].get(name)) for name in schemes],
        "gains": [_rounded(gain) for gain in row["gain_per_token"]],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _note(sources: Sequence[tuple[str, Sequence[StepSample]]]) -> str:
    samples = [sample for _, found in sources for sample in found]
    shown, total = sum(len(sample.rows) for sample in samples), sum(s.total for s in samples)
    if shown == total:
        return ""
    return (
        f"{shown:,} of the {total:,} thoughts of these steps are here: of each step the best and "
        "the worst advantages and an even sample of the others."
    )
