"""Line charts as SVG text: pure functions of numbers, no script, colours from the style sheet.

Colours are eight that stay apart for colour-blind readers (Okabe and Ito), and each has its dash
pattern as well, so that a chart also reads without colour.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

NUM_COLORS = 8
NUM_DASHES = 4
MAX_POINTS = 400

_WIDTH, _HEIGHT = 400, 224
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 10, 28, 36

Values = Sequence[float | None]
Limits = tuple[float | None, float | None]
"""The least and the greatest value that there can be; None where there is no such end."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line. None leaves a gap. low, high: the edges of a band around it.

    color, dash: indices that cycle through the style sheet's colours and dash patterns.
    """

    label: str
    xs: Sequence[float]
    ys: Values
    low: Values | None = None
    high: Values | None = None
    color: int = 0
    dash: int = 0

    @property
    def css(self) -> str:
        """Its class names in the style sheet."""
        return f"c{self.color % NUM_COLORS} d{self.dash % NUM_DASHES}"


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart. legend: (class names, label) of each line. note: how it was thinned, if so."""

    title: str
    unit: str
    svg: Markup
    legend: list[tuple[str, str]]
    note: str


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values low…high to pixels; `ticks` lie on round numbers."""

    low: float
    high: float
    pixel_low: float
    pixel_high: float
    ticks: list[float]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.pixel_low + share * (self.pixel_high - self.pixel_low)


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    x_label: str = "step",
    *,
    limits: Limits = (None, None),
    links: Sequence[int] = (),
) -> Chart | None:
    """Draw the lines over one pair of axes; None when no line has a value.

    unit: of the y values. limits: what y can be at all; with both of them the axis goes from one
    to the other. links: steps
    whose part of the chart leads to `#step-<number>`. Lines of more than 400 points are averaged
    in runs of equal length.
    """
    thinned = [_thin(line) for line in series]
    lines = [line for line, _ in thinned if any(y is not None for y in line.ys)]
    if not lines:
        return None
    shown_x = [x for line in lines for x in line.xs]
    shown_y = [y for line in lines for y in _all_values(line)]
    x_axis = _x_axis(min(shown_x), max(shown_x))
    y_axis = _y_axis(min(shown_y), max(shown_y), limits)
    body = [
        _grid(x_axis, y_axis, unit, x_label),
        *(_band(line, x_axis, y_axis) for line in lines),
        *(_line(line, x_axis, y_axis) for line in lines),
        _links(links, lines, x_axis),
    ]
    svg = Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{title}, {unit}">'
        "{body}</svg>"
    ).format(w=_WIDTH, h=_HEIGHT, title=title, unit=unit, body=Markup("").join(body))
    runs = max(size for _, size in thinned)
    note = f"each point is the mean of {runs} steps" if runs > 1 else ""
    return Chart(title, unit, svg, [(line.css, line.label) for line in lines], note)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart), about `count`, from <= low to >= high.

    Raises ValueError unless low < high and both are finite.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"no axis from {low} to {high}")
    step = _round_step((high - low) / max(count - 1, 1))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounding takes off the dust of the multiplication: 0.30000000000000004.
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels with as many digits each: 3.0, 2.8; and 2e-05 where plain digits would be long."""
    size = max(abs(value) for value in values)
    if size and not 1e-3 <= size < 1e6:
        texts = [f"{value:.3g}" for value in values]
    else:
        digits = max(len(f"{value:.8f}".rstrip("0").partition(".")[2]) for value in values)
        texts = [f"{value:,.{digits}f}" for value in values]
    return [text.replace("-", "\N{MINUS SIGN}") for text in texts]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))


def _x_axis(low: float, high: float) -> _Axis:
    if low == high:
        low, high = low - 0.5, high + 0.5
        marks = [low + 0.5]
    else:
        marks = [tick for tick in ticks(low, high, 6) if low <= tick <= high]
        if all(tick == int(tick) for tick in (low, high)):
            marks = sorted({tick for tick in marks if tick == int(tick)})
    return _Axis(low, high, _LEFT, _WIDTH - _RIGHT, marks)


def _y_axis(low: float, high: float, limits: Limits) -> _Axis:
    least, most = limits
    if least is not None and most is not None:
        low, high = min(low, least), max(high, most)
    elif low == high:
        pad = abs(low) * 0.1 or 1.0
        # A value past its limit is drawn where it is; the limit then says nothing.
        low = low - pad if least is None or low < least else max(least, low - pad)
        high += pad
    marks = ticks(low, high, 5)
    return _Axis(marks[0], marks[-1], _HEIGHT - _BOTTOM, _TOP, marks)


def _grid(x_axis: _Axis, y_axis: _Axis, unit: str, x_label: str) -> Markup:
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = [Markup('<text class="unit" x="0" y="12">{}</text>').format(unit)]
    for tick, label in zip(y_axis.ticks, tick_labels(y_axis.ticks), strict=True):
        y = y_axis(tick)
        kind = "zero" if tick == 0 else "grid"
        parts.append(
            Markup(
                f'<path class="{kind}" d="M{_LEFT} {y:.1f}H{right}"/>'
                f'<text class="tick y" x="{_LEFT - 6}" y="{y + 3.5:.1f}">{label}</text>'
            )
        )
    for tick, label in zip(x_axis.ticks, tick_labels(x_axis.ticks), strict=True):
        x = x_axis(tick)
        parts.append(
            Markup(
                f'<path class="axis" d="M{x:.1f} {floor}v4"/>'
                f'<text class="tick x" x="{x:.1f}" y="{floor + 16}">{label}</text>'
            )
        )
    parts.append(
        Markup(f'<path class="axis" d="M{_LEFT} {floor}H{right}"/>')
        + Markup('<text class="tick x" x="{x}" y="{y}">{label}</text>').format(
            x=(_LEFT + right) // 2, y=_HEIGHT - 3, label=x_label
        )
    )
    return Markup("").join(parts)


def _line(line: Series, x_axis: _Axis, y_axis: _Axis) -> Markup:
    parts = []
    for stretch in _stretches(line.ys):
        points = [f"{x_axis(line.xs[i]):.1f} {y_axis(_present(line.ys[i])):.1f}" for i in stretch]
        if len(points) == 1:
            x, y = points[0].split()
            parts.append(Markup(f'<circle class="dot {line.css}" cx="{x}" cy="{y}" r="2.5"/>'))
        else:
            parts.append(Markup(f'<path class="line {line.css}" d="M{"L".join(points)}"/>'))
    return Markup("").join(parts)


def _band(line: Series, x_axis: _Axis, y_axis: _Axis) -> Markup:
    if line.low is None or line.high is None:
        return Markup("")
    low, high = line.low, line.high
    both = [None if a is None or b is None else a for a, b in zip(low, high, strict=True)]
    parts = []
    for stretch in _stretches(both):
        if len(stretch) == 1:
            x = x_axis(line.xs[stretch[0]])
            bottom, top = (y_axis(_present(edge[stretch[0]])) for edge in (low, high))
            parts.append(
                Markup(f'<path class="bar {line.css}" d="M{x:.1f} {bottom:.1f}V{top:.1f}"/>')
            )
            continue
        there = [f"{x_axis(line.xs[i]):.1f} {y_axis(_present(low[i])):.1f}" for i in stretch]
        back = [
            f"{x_axis(line.xs[i]):.1f} {y_axis(_present(high[i])):.1f}" for i in reversed(stretch)
        ]
        parts.append(Markup(f'<path class="band {line.css}" d="M{"L".join(there + back)}Z"/>'))
    return Markup("").join(parts)


def _links(steps: Sequence[int], lines: Sequence[Series], x_axis: _Axis) -> Markup:
    """A strip of the chart for each step, half-way to its neighbours, that leads to its thoughts.

    The Tab key passes them over: fourteen charts would make hundreds of stops, and the list of
    steps over the thoughts has the same links.
    """
    inside = [step for step in steps if x_axis.low <= step <= x_axis.high]
    if not inside:
        return Markup("")
    edges = [(a + b) / 2 for a, b in itertools.pairwise(inside)]
    parts = []
    for step, low, high in zip(inside, [x_axis.low, *edges], [*edges, x_axis.high], strict=True):
        parts.append(
            Markup(
                '<a href="#step-{step}" tabindex="-1"><rect class="hit" x="{x:.1f}" y="{y}" '
                'width="{width:.1f}" height="{height}"><title>{title}</title></rect></a>'
            ).format(
                step=step,
                x=x_axis(low),
                y=_TOP,
                width=x_axis(high) - x_axis(low),
                height=_HEIGHT - _BOTTOM - _TOP,
                title=_readout(step, lines),
            )
        )
    return Markup("").join(parts)


def _readout(step: int, lines: Sequence[Series]) -> str:
    """What a pointer over a step is told: the value of each line at it or just after it."""
    values = []
    for line in lines:
        at = next((y for x, y in zip(line.xs, line.ys, strict=True) if x >= step), None)
        if at is not None:
            values.append(f"{line.label} {at:.4g}".replace("-", "\N{MINUS SIGN}"))
    return "; ".join([f"step {step}", *values]) + "; choose to read its thoughts"


def _stretches(values: Values) -> Iterator[list[int]]:
    """Indices of each unbroken stretch of values that are there."""
    stretch: list[int] = []
    for index, value in enumerate(values):
        if value is not None:
            stretch.append(index)
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _thin(line: Series) -> tuple[Series, int]:
    """The line with at most 400 points, and how many of its points one of them stands for."""
    size = math.ceil(len(line.xs) / MAX_POINTS)
    if size <= 1:
        return line, 1
    starts = range(0, len(line.xs), size)

    def means(values: Values) -> list[float | None]:
        return [_mean(values[start : start + size]) for start in starts]

    return (
        Series(
            label=line.label,
            xs=[line.xs[min(start + size, len(line.xs)) - 1] for start in starts],
            ys=means(line.ys),
            low=None if line.low is None else means(line.low),
            high=None if line.high is None else means(line.high),
            color=line.color,
            dash=line.dash,
        ),
        size,
    )


def _mean(values: Values) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _all_values(line: Series) -> Iterator[float]:
    for values in (line.ys, line.low, line.high):
        yield from (value for value in values or () if value is not None)


def _present(value: float | None) -> float:
    assert value is not None
    return value
