"""Held-out contexts with each continuation token coloured by its gain, and the thoughts there."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rntp.report.numbers import clip, number, signed, visible
from rntp.report.runs import RunData

LEVELS = 5
MAX_PAGES = 8  # of all runs together
MAX_POSITIONS = 24  # of one context
MAX_THOUGHTS = 4  # of one position and one evaluation
MAX_TEXT_CHARS = 2000
MAX_TOKEN_CHARS = 400
_LEAD_TOKENS = 160  # plain tokens shown before a continuation
_TAIL_TOKENS = 40  # and after the last one

Gains = list[float | None]


@dataclass(frozen=True, slots=True)
class Cell:
    """A token and the shade of its gain: css p5 (helps most) … z … n5; title: the numbers."""

    text: str
    css: str
    title: str


@dataclass(frozen=True, slots=True)
class ThoughtView:
    """One thought at a position."""

    text: str
    ending: str
    num_tokens: int
    gain: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Side:
    """The thoughts of one evaluation at a position."""

    name: str
    gain: str
    thoughts: list[ThoughtView]
    left_out: int


@dataclass(frozen=True, slots=True)
class PositionView:
    """The panel of one position. anchor: its id in the page."""

    anchor: str
    number: int
    position: int
    sides: list[Side]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a context. kind: "plain", "gap", "mark" (a position begins) or "token"."""

    kind: str
    text: str
    css: str = ""
    title: str = ""
    anchor: str = ""


@dataclass(frozen=True, slots=True)
class ContextView:
    """One held-out context."""

    ordinal: int
    document_id: str
    title: str
    pieces: list[Piece]
    positions: list[PositionView]
    left_out: int


@dataclass(frozen=True, slots=True)
class TextSection:
    """The contexts of one run. shades: which evaluations colour them, the first by default."""

    label: str
    shades: list[str]
    contexts: list[ContextView]
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Measured:
    """One position of one evaluation: gains_H is the mean over its thoughts, nats."""

    raw: dict
    gains: Gains


def scale_bound(gains: Iterable[float | None]) -> float:
    """Find where the colours are full, nats: above 95 % of the absolute gains, a round number."""
    sizes = sorted(abs(gain) for gain in gains if gain is not None)
    if not sizes or sizes[-1] == 0:
        return 1.0
    typical = sizes[math.ceil(0.95 * len(sizes)) - 1] or sizes[-1]
    power = 10.0 ** math.floor(math.log10(typical))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= typical * (1 - 1e-9))


def shade(gain: float | None, bound: float) -> str:
    """Class name of a colour: n5 … n1, z, p1 … p5; "none" for a gain that is not finite."""
    if gain is None:
        return "none"
    level = round(max(-1.0, min(1.0, gain / bound)) * LEVELS)
    return "z" if level == 0 else f"{'p' if level > 0 else 'n'}{abs(level)}"


def text_sections(runs: Sequence[RunData]) -> tuple[list[TextSection], float]:
    """The contexts of every run and the bound of the common colour scale, nats."""
    measured = [_measure(run) for run in runs]
    bound = scale_bound(
        gain
        for sides in measured
        for pages in sides.values()
        for _, positions in pages.values()
        for position in positions.values()
        for gain in position.gains
    )
    budget = max(1, MAX_PAGES // len(runs))
    sections = [
        _section(run.label, f"r{index}", sides, bound, budget)
        for index, (run, sides) in enumerate(zip(runs, measured, strict=True))
    ]
    return sections, bound


_Pages = dict[int, tuple[dict, dict[int, _Measured]]]


def _measure(run: RunData) -> dict[str, _Pages]:
    """Evaluation name -> ordinal -> (page, position -> its gains)."""
    sides = {"after": run.after, "before": run.before}
    return {
        name: {
            page["ordinal"]: (
                page,
                {raw["position"]: _Measured(raw, _mean_gains(raw)) for raw in page["positions"]},
            )
            for page in evaluation.get("pages", [])
        }
        for name, evaluation in sides.items()
        if evaluation is not None and evaluation.get("pages")
    }


def _mean_gains(raw: dict) -> Gains:
    each = [_gains(thought["logp_think"], raw["logp_empty"]) for thought in raw["thoughts"]]
    return [_mean(gains) for gains in zip(*each, strict=True)]


def _gains(think: Sequence[float | None], empty: Sequence[float | None]) -> Gains:
    pairs = zip(think, empty, strict=True)
    return [None if t is None or e is None else t - e for t, e in pairs]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if len(there) == len(values) and there else None


def _section(
    label: str, prefix: str, sides: dict[str, _Pages], bound: float, budget: int
) -> TextSection:
    ordinals = list(dict.fromkeys(ordinal for pages in sides.values() for ordinal in pages))
    contexts = [
        _context(f"{prefix}c{index}", ordinal, sides, bound)
        for index, ordinal in enumerate(ordinals[:budget])
    ]
    left_out = []
    if len(ordinals) > budget:
        left_out.append(f"{len(ordinals) - budget} more contexts are in eval/")
    hidden = sum(context.left_out for context in contexts)
    if hidden:
        left_out.append(f"{hidden} positions past the first {MAX_POSITIONS} of a context")
    thoughts = sum(
        side.left_out for context in contexts for place in context.positions for side in place.sides
    )
    if thoughts:
        left_out.append(f"{thoughts} thoughts past the first {MAX_THOUGHTS} of a position")
    return TextSection(label, list(sides), contexts, left_out)


def _context(anchor: str, ordinal: int, sides: dict[str, _Pages], bound: float) -> ContextView:
    here = {name: pages[ordinal] for name, pages in sides.items() if ordinal in pages}
    page, _ = next(iter(here.values()))
    tokens = page["tokens"]
    # A page that was cut into other tokens is another text: its positions mean something else.
    measured = {name: places for name, (other, places) in here.items() if other["tokens"] == tokens}
    positions = sorted({position for places in measured.values() for position in places})
    shown = positions[:MAX_POSITIONS]
    views = [
        PositionView(
            anchor=f"{anchor}p{number_}",
            number=number_,
            position=position,
            sides=[
                _side(name, places[position], tokens, bound)
                for name, places in reversed(measured.items())
                if position in places
            ],
        )
        for number_, position in enumerate(shown, 1)
    ]
    return ContextView(
        ordinal=ordinal,
        document_id=clip(page["document_id"], 200),
        title=clip(page.get("title", ""), 200),
        pieces=_pieces(tokens, views, measured, bound),
        positions=views,
        left_out=len(positions) - len(shown),
    )


def _side(name: str, measured: _Measured, tokens: Sequence[str], bound: float) -> Side:
    raw, position = measured.raw, measured.raw["position"]
    shown = raw["thoughts"][:MAX_THOUGHTS]
    thoughts = []
    for thought in shown:
        gains = _gains(thought["logp_think"], raw["logp_empty"])
        texts = tokens[position : position + len(gains)]
        thoughts.append(
            ThoughtView(
                text=clip(thought["text"], MAX_TEXT_CHARS),
                ending="closed by the model" if thought["closed"] else "cut off at the limit",
                num_tokens=thought["num_tokens"],
                gain=signed(_mean(gains)),
                cells=[
                    Cell(
                        visible(clip(text, MAX_TOKEN_CHARS)),
                        shade(gain, bound),
                        _cell_title(gain, think, empty),
                    )
                    for text, gain, think, empty in zip(
                        texts, gains, thought["logp_think"], raw["logp_empty"], strict=True
                    )
                ],
            )
        )
    return Side(name, signed(_mean(measured.gains)), thoughts, len(raw["thoughts"]) - len(shown))


def _cell_title(gain: float | None, think: float | None, empty: float | None) -> str:
    return (
        f"gain {signed(gain)} nats; log-probability {number(think)} with the thought, "
        f"{number(empty)} without"
    )


def _pieces(
    tokens: Sequence[str],
    views: Sequence[PositionView],
    measured: dict[str, dict[int, _Measured]],
    bound: float,
) -> list[Piece]:
    """The text in order. Where continuations overlap, a token shows the one that began last."""
    pieces: list[Piece] = []
    done = 0
    for index, view in enumerate(views):
        places = {
            n: where[view.position] for n, where in measured.items() if view.position in where
        }
        length = min(len(place.gains) for place in places.values())
        nearest = views[index + 1].position if index + 1 < len(views) else len(tokens)
        end = min(view.position + length, nearest, len(tokens))
        lead = max(done, view.position - _LEAD_TOKENS)
        pieces += _gap(lead - done) + _plain(tokens[lead : view.position])
        pieces.append(Piece("mark", str(view.number), anchor=view.anchor))
        for token in range(view.position, end):
            gains = {name: place.gains[token - view.position] for name, place in places.items()}
            css = " ".join(f"{name}-{shade(gain, bound)}" for name, gain in gains.items())
            title = f"position {view.position} + {token - view.position}; gain, nats: " + ", ".join(
                f"{signed(gain)} {name} training" for name, gain in reversed(gains.items())
            )
            text = visible(clip(tokens[token], MAX_TOKEN_CHARS), keep_breaks=True)
            pieces.append(Piece("token", text, css, title, view.anchor))
        done = max(done, end)
    tail = min(len(tokens), done + _TAIL_TOKENS)
    return pieces + _plain(tokens[done:tail]) + _gap(len(tokens) - tail)


def _plain(tokens: Sequence[str]) -> list[Piece]:
    return [Piece("plain", "".join(clip(t, MAX_TOKEN_CHARS) for t in tokens))] if tokens else []


def _gap(num_tokens: int) -> list[Piece]:
    return [Piece("gap", f"{num_tokens:,} tokens")] if num_tokens > 0 else []
