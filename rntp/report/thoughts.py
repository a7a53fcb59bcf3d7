"""Thoughts from training: the best and the worst advantages of the first and the last step."""

from dataclasses import dataclass

from rntp.report.explorer import place_name
from rntp.report.numbers import clip, number, signed, visible
from rntp.report.runs import RunData
from rntp.report.texts import MAX_TEXT_CHARS, Cell, shade

MAX_EACH = 3
_TAIL_CHARS = 240


@dataclass(frozen=True, slots=True)
class TrainingThought:
    """One row of the table; ready to print. rewards: (scheme, value)."""

    rank: str
    place: str
    document_id: str
    prefix_tail: str
    continuation: list[Cell]
    thought: str
    answer: str
    ending: str
    num_tokens: int
    advantage: str
    reward: str
    gain: str
    rewards: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class StepThoughts:
    """The rows of one step, best first, and how many of its thoughts are not shown."""

    step: int
    rows: list[TrainingThought]
    left_out: int


def training_thoughts(run: RunData, bound: float) -> list[StepThoughts]:
    """bound: of the colour scale, nats."""
    return [step_thoughts(step, rows, bound) for step, rows in run.thoughts]


def step_thoughts(step: int, rows: list[dict], bound: float) -> StepThoughts:
    """The best and the worst of the rows of one step."""
    ranked = sorted(
        (row for row in rows if row["advantage"] is not None),
        key=lambda row: row["advantage"],
        reverse=True,
    )
    num_best = min(MAX_EACH, (len(ranked) + 1) // 2)
    num_worst = min(MAX_EACH, len(ranked) - num_best)
    best = [_row("best", row, bound) for row in ranked[:num_best]]
    worst = [_row("worst", row, bound) for row in ranked[len(ranked) - num_worst :]]
    return StepThoughts(step, best + worst, len(rows) - len(best) - len(worst))


def _row(rank: str, row: dict, bound: float) -> TrainingThought:
    tail = row["prefix_tail"]
    return TrainingThought(
        rank=rank,
        place=f"{place_name(row)}, token {row['position']}",
        document_id=clip(str(row["document_id"]), 120),
        prefix_tail=f"…{tail[-_TAIL_CHARS:]}",
        continuation=[
            Cell(visible(clip(token, 80)), shade(gain, bound), f"gain {signed(gain)} nats")
            for token, gain in zip(row["continuation_tokens"], row["gain_per_token"], strict=True)
        ],
        thought=clip(row["thought"], MAX_TEXT_CHARS),
        answer=clip(row["answer"], MAX_TEXT_CHARS),
        ending="closed" if row["closed"] else "cut off",
        num_tokens=row["num_tokens"],
        advantage=signed(row["advantage"]),
        reward=number(row["reward"]),
        gain=signed(row["gain"]),
        rewards=[(scheme, number(value)) for scheme, value in row["rewards"].items()],
    )
