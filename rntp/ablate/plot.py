"""The picture of a grid: one column by arm, and the learning curves beside it.

Imported only to draw: matplotlib is an extra.
"""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rntp.ablate.numbers import Curve, band, running_mean
from rntp.runtime.files import write_bytes_atomic

SMOOTHING_STEPS = 5
_TICK_POINTS = 9
_TICK_GAP = 4.0  # pixels between the labels of two ticks

# Okabe and Ito without the yellow, which white paper swallows; they stay apart for everyone.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREYS = ("#707070", "#A8A8A8", "#404040", "#8C8C8C")

Dash = str | tuple[int, tuple[float, ...]]
"""As matplotlib takes it: a name, or (offset, lengths of strokes and gaps)."""
_DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_CONTROL_DASHES: tuple[Dash, ...] = (
    (0, (2, 1.2)),
    (0, (4, 2)),
    (0, (1, 1.6)),
    (0, (6, 1, 1, 1)),
)
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelsize": 9,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.parse_math": False,  # a $ in a name is a $
    # The ids in an SVG, and so its bytes, depend on what it shows alone.
    "svg.hashsalt": "rntp",
}


@dataclass(frozen=True, slots=True)
class ArmData:
    """What is drawn of an arm. values: the plotted column by seed; curves: one a seed."""

    name: str
    control: bool
    reference: bool
    values: Sequence[float]
    x: float | None
    curves: Sequence[Curve]


@dataclass(frozen=True, slots=True)
class Labels:
    """The words of the picture. curve: the metric of the learning curves, if they are drawn."""

    title: str
    y: str
    x: str
    x_scale: str
    curve: str | None


@dataclass(frozen=True, slots=True)
class _Look:
    color: str
    dash: Dash
    face: str


Looks = Mapping[str, _Look]


def save_plot(arms: Sequence[ArmData], labels: Labels, folder: Path) -> None:
    """Write plot.svg and plot.png."""
    with mpl.rc_context(_STYLE):
        figure = _draw(arms, labels)
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=200, metadata=metadata, facecolor="white")
            write_bytes_atomic(folder / f"plot.{ending}", buffer.getvalue())


def _draw(arms: Sequence[ArmData], labels: Labels) -> Figure:
    looks = _looks(arms)
    over_x = any(arm.x is not None for arm in arms)
    height = 3.6 if over_x else max(3.0, 1.5 + 0.42 * len(arms))
    figure = Figure(figsize=(12 if labels.curve else 7, height))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.06, wspace=0.03)
    title = textwrap.fill(labels.title, 110 if labels.curve else 70)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    if labels.curve:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _curves(right, arms, looks, labels.curve)
    else:
        left = figure.subplots()
    if over_x:
        _over_x(left, arms, looks, labels)
    else:
        _by_arm(left, arms, looks, labels)
    _thin_labels(figure, left)
    figure.supxlabel(_caption(arms, labels), x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def _by_arm(axes: Axes, arms: Sequence[ArmData], looks: Looks, labels: Labels) -> None:
    """A row an arm, so that long names stand beside their dots."""
    for row, arm in enumerate(arms):
        look, count = looks[arm.name], len(arm.values)
        axes.axhline(row, color="#EEEEEE", linewidth=0.8, zorder=0)
        if not count:
            axes.annotate(
                "not measured",
                (0.5, row),
                xycoords=("axes fraction", "data"),
                ha="center",
                va="center",
                fontsize=8,
                color="#888888",
                backgroundcolor="white",
            )
            continue
        # Seeds a little apart from one another, so that equal values are seen to be several.
        offsets = [0.24 * (i - (count - 1) / 2) / max(count - 1, 1) for i in range(count)]
        axes.plot(
            arm.values,
            [row + offset for offset in offsets],
            linestyle="",
            marker="o",
            markersize=5.5,
            markeredgecolor=look.color,
            markerfacecolor=look.face,
            alpha=0.85,
        )
        mean = sum(arm.values) / count
        axes.plot([mean, mean], [row - 0.3, row + 0.3], color=look.color, linewidth=2.4)
        if arm.reference:
            axes.axvline(mean, color=look.color, linewidth=0.9, linestyle=(0, (3, 3)), zorder=0.5)
    axes.set_yticks(range(len(arms)), [_wrapped(_named(arm)) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.set_xlabel(labels.y)
    _zero_line(axes.axvline, axes.get_xlim())


def _over_x(axes: Axes, arms: Sequence[ArmData], looks: Looks, labels: Labels) -> None:
    """Lines through the means against x, one for the arms and one for the controls."""
    axes.set_xscale(labels.x_scale)
    placed = sorted(
        (arm.x, arm.control, arm.values) for arm in arms if arm.x is not None and arm.values
    )
    for control, color, face, name in (
        (False, _COLORS[0], _COLORS[0], "arms"),
        (True, _GREYS[0], "white", "controls"),
    ):
        group = [(x, values) for x, is_control, values in placed if is_control is control]
        if not group:
            continue
        axes.plot(
            [x for x, _ in group],
            [sum(values) / len(values) for _, values in group],
            color=color,
            linewidth=1.8,
            linestyle=_CONTROL_DASHES[0] if control else "-",
            label=name,
        )
        axes.plot(
            [x for x, values in group for _ in values],
            [value for _, values in group for value in values],
            linestyle="",
            marker="o",
            markersize=5,
            markeredgecolor=color,
            markerfacecolor=face,
            alpha=0.85,
        )
    for arm in arms:
        if arm.x is None and arm.values:
            look = looks[arm.name]
            axes.axhspan(min(arm.values), max(arm.values), color=look.color, alpha=0.12, lw=0)
            axes.axhline(
                sum(arm.values) / len(arm.values),
                color=look.color,
                linewidth=1.4,
                linestyle=look.dash,
                label=_wrapped(_named(arm)),
            )
    numbers = sorted({arm.x for arm in arms if arm.x is not None})
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.minorticks_off()
    axes.tick_params(axis="x", labelsize=_TICK_POINTS)
    axes.set_xlabel(labels.x)
    axes.set_ylabel(labels.y)
    axes.margins(y=0.12)
    _zero_line(axes.axhline, axes.get_ylim())
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(loc="best")


def _curves(axes: Axes, arms: Sequence[ArmData], looks: Looks, curve: str) -> None:
    for arm in arms:
        rows = band([running_mean(c, SMOOTHING_STEPS) for c in arm.curves])
        if not rows:
            continue
        steps, means, low, high = zip(*rows, strict=True)
        look = looks[arm.name]
        if len(arm.curves) > 1:
            axes.fill_between(steps, low, high, color=look.color, alpha=0.14, linewidth=0)
        marker = "o" if len(rows) == 1 else ""
        axes.plot(
            steps,
            means,
            color=look.color,
            linestyle=look.dash,
            linewidth=1.5,
            marker=marker,
            label=_wrapped(_named(arm)),
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"{curve} in training")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)
    _zero_line(axes.axhline, axes.get_ylim())
    if axes.has_data():
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)


def _zero_line(line: Callable[..., object], limits: tuple[float, float]) -> None:
    """Where the axis crosses 0: there a gain turns into a loss."""
    if limits[0] < 0 < limits[1]:
        line(0, color="#999999", linewidth=0.8, zorder=0.4)


def _looks(arms: Sequence[ArmData]) -> dict[str, _Look]:
    """A colour and a dash for each arm: greys and hollow dots for controls."""
    looks, numbers = {}, {True: 0, False: 0}
    for arm in arms:
        number = numbers[arm.control]
        numbers[arm.control] += 1
        if arm.control:
            color = _GREYS[number % len(_GREYS)]
            dash = _CONTROL_DASHES[number % len(_CONTROL_DASHES)]
            looks[arm.name] = _Look(color, dash, "white")
        else:
            color = _COLORS[number % len(_COLORS)]
            dash = _DASHES[number // len(_COLORS) % len(_DASHES)]
            looks[arm.name] = _Look(color, dash, color)
    return looks


def _thin_labels(figure: Figure, axes: Axes) -> None:
    """Take off labels of the x axis that would run into their neighbours; their ticks stay."""
    figure.draw_without_rendering()  # only then is it known how wide the axes and the labels are
    low, high = sorted(axes.get_xlim())
    marks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    inside = [(x, label) for x, label in marks if low <= x <= high]
    extents = [label.get_window_extent() for _, label in inside]
    kept = apart([(box.x0, box.x1) for box in extents], _TICK_GAP)
    if len(kept) < len(inside):
        texts = [label.get_text() if n in kept else "" for n, (_, label) in enumerate(inside)]
        axes.set_xticks([x for x, _ in inside], texts)


def apart(spans: Sequence[tuple[float, float]], gap: float) -> set[int]:
    """Choose spans, in order of their place, that lie at least `gap` apart.

    The first and the last are kept, for they say where the axis begins and ends, unless these two
    touch; between them each one that has room behind the one before it.
    """
    if not spans:
        return set()
    last = len(spans) - 1
    kept = [0]
    for n in range(1, last):
        if spans[n][0] >= spans[kept[-1]][1] + gap and spans[n][1] + gap <= spans[last][0]:
            kept.append(n)
    if last and spans[last][0] >= spans[kept[-1]][1] + gap:
        kept.append(last)
    return set(kept)


def _named(arm: ArmData) -> str:
    return f"{arm.name} (control)" if arm.control else arm.name


def _wrapped(text: str, width: int = 32) -> str:
    """In as few lines as that width needs, of about one length: no word alone on the last."""
    lines = textwrap.wrap(text, width)
    while width > 1 and len(tighter := textwrap.wrap(text, width - 1)) == len(lines):
        lines, width = tighter, width - 1
    return "\n".join(lines)


def _caption(arms: Sequence[ArmData], labels: Labels) -> str:
    over_x = any(arm.x is not None for arm in arms)
    parts = ["Dots: one run each", f"{'lines' if over_x else 'bars'}: means over seeds"]
    if over_x and any(arm.x is None for arm in arms):
        parts.append("shades: from the lowest to the highest seed")
    if any(arm.control for arm in arms):
        parts.append("grey: controls")
    if any(arm.reference for arm in arms) and not over_x:
        parts.append("thin dashes: the reference")
    if labels.curve:
        parts.append(
            f"curves: running mean of {SMOOTHING_STEPS} steps, mean over seeds with a band from "
            "the lowest to the highest"
        )
    return "; ".join(parts) + "."
