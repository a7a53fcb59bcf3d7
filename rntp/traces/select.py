"""Which thoughts of a run are kept, and what is told of each. Pure functions of rows.

Rows are those of rollouts/step_N.jsonl (see `rntp.training.step_stats.StepStats.rows`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rntp.evaluation.ngrams import covered

OVERLAP_NGRAM = 3

Row = dict[str, Any]

FIELDS = {
    "step": "optimizer step whose policy thought this (policy version step − 1)",
    "ordinal": "number of the context in the run's stream",
    "document_id": "of the corpus",
    "position": "index in the context of the first token of the continuation",
    "thought_index": "which of the group",
    "prefix_tail": "text before the thought, its last 48 tokens",
    "thought": "text between the think markers",
    "continuation": "the held-out text after it, the run's horizon long",
    "gain": "log p(continuation | prefix, thought) − log p(continuation | prefix), nats per token",
    "reward": "under the run's driving scheme, in that scheme's unit",
    "num_tokens": "tokens between the markers",
    "overlap": "share of the continuation's n-grams that stand in the thought (n in this file's "
    "`overlap_ngram`, or the horizon where that is shorter)",
    "thought_ids": "token ids, with both think markers",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """min_gain: nats per token. max_overlap: share in [0, 1]. per_position: thoughts at most.
    unclosed: also those that were cut at their longest, whose close marker was forced."""

    min_gain: float = 0.0
    max_overlap: float = 1.0
    per_position: int = 1
    unclosed: bool = False


def select(
    rows: Iterable[Row],
    wanted: Wanted,
    strings: Callable[[Sequence[int]], list[str]],
    funnel: Counter[str],
) -> Iterator[Row]:
    """The kept rows of one step, each with its overlap, position by position, best first.

    strings: token ids to one text each. funnel: counts every row once, under what became of it.
    """
    places: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        funnel["read"] += 1
        reason = _unfit(row, wanted)
        if reason:
            funnel[reason] += 1
            continue
        said = strings(row["thought_ids"][1:-1])
        row = {**row, "overlap": overlap(row["continuation_tokens"], said)}
        if row["overlap"] > wanted.max_overlap:
            funnel["says the continuation"] += 1
            continue
        places.setdefault((row["ordinal"], row["position"]), []).append(row)
    for group in places.values():
        group.sort(key=lambda row: (-row["gain"], row["thought_index"]))
        for rank, row in enumerate(group):
            if rank >= wanted.per_position:
                funnel["not among the best of its position"] += 1
                continue
            funnel["kept"] += 1
            yield row


def overlap(continuation: Sequence[str], thought: Sequence[str]) -> float:
    """Share of the continuation's n-grams that stand in the thought, in [0, 1]."""
    share = covered(continuation, thought, min(OVERLAP_NGRAM, len(continuation)))
    assert share is not None
    return share


def _unfit(row: Row, wanted: Wanted) -> str:
    if not row["closed"] and not wanted.unclosed:
        return "not closed"
    # A gain that was not finite was written as null.
    if row["gain"] is None or row["gain"] < wanted.min_gain:
        return "gain too small"
    return ""
