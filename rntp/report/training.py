"""Which curves of metrics.jsonl the report draws."""

from collections.abc import Sequence
from dataclasses import dataclass

from rntp.report.curves import Chart, Limits, Series, line_chart
from rntp.report.runs import RunData

Edge = list[float | None] | None

_NOT_SCHEMES = {"reward/mean", "reward/std", "reward/sem", "reward/noise_floor"}


@dataclass(frozen=True, slots=True)
class _Plot:
    """lines: (metric, label). A single label is left out where the title says it.

    limits: what the values can be at all.
    """

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    limits: Limits = (None, None)


_NOT_NEGATIVE = (0.0, None)
_BEFORE_SCHEMES = (_Plot("Reward, mean ± standard error", "reward", (("reward/mean", "mean"),)),)
_AFTER_SCHEMES = (
    _Plot(
        "Spread of the reward",
        "reward",
        (("reward/std", "standard deviation"), ("reward/noise_floor", "noise floor")),
        _NOT_NEGATIVE,
    ),
    _Plot("Gain from thinking", "nats per token", (("gain/mean", "gain"),)),
    _Plot(
        "Loss of the continuation",
        "nats per token",
        (("nll/no_think", "no think"), ("nll/think", "think")),
        _NOT_NEGATIVE,
    ),
    _Plot(
        "Tasks",
        "fraction",
        (
            ("task/pass_rate", "right answers"),
            ("task/solved_frac", "tasks that some attempt solves"),
            ("task/mixed_frac", "of them, not by all"),
        ),
        (0.0, 1.0),
    ),
    _Plot("Length of a thought", "tokens", (("thought/tokens_mean", "mean"),), _NOT_NEGATIVE),
    _Plot(
        "Thoughts closed, groups without signal",
        "fraction",
        (("thought/closed_frac", "closed by the model"), ("group/dead_frac", "dead groups")),
        (0.0, 1.0),
    ),
    _Plot(
        "Entropy of thought tokens",
        "nats per token",
        (("entropy/thought", "entropy"),),
        _NOT_NEGATIVE,
    ),
    _Plot(
        "Divergence of policy from sampler",
        "nats per token",
        (("kl/sampler", "KL"),),
        _NOT_NEGATIVE,
    ),
    _Plot(
        "Losses",
        "loss",
        (
            ("loss/total", "total"),
            ("loss/pg", "policy gradient"),
            ("loss/continuation", "continuation"),
            ("loss/ntp", "next token"),
        ),
    ),
    _Plot(
        "Gate: can it tell where thinking helps",
        "fraction",
        (("gate/auc", "AUC, 0.5 is chance"), ("gate/pays_frac", "positions where it expects gain")),
        (0.0, 1.0),
    ),
    _Plot(
        "Mixing: how far the head trusts thoughts",
        "fraction",
        (("mixing/weight", "weight of the thought"),),
        (0.0, 1.0),
    ),
    _Plot("Gradient norm before clipping", "L2 norm", (("grad_norm", "norm"),), _NOT_NEGATIVE),
    _Plot("Learning rate", "per step", (("lr", "learning rate"),), _NOT_NEGATIVE),
    _Plot(
        "Time of a step",
        "seconds",
        (
            ("time/step_s", "whole step"),
            ("time/rollout_s", "rollout"),
            ("time/forward_s", "forward"),
            ("time/backward_s", "backward"),
            ("time/update_s", "update"),
        ),
        _NOT_NEGATIVE,
    ),
)


def training_charts(runs: Sequence[RunData], links: Sequence[int] = ()) -> list[Chart]:
    """Draw every curve that has a value; the runs lie over one another.

    links: the steps whose thoughts the page has.
    """
    schemes = sorted(
        {
            key
            for run in runs
            for row in run.metrics
            for key in row
            if key.startswith("reward/") and key not in _NOT_SCHEMES
        }
    )
    shadows = tuple(
        _Plot(f"Reward as {key.removeprefix('reward/')} (logged)", "reward", ((key, "mean"),))
        for key in schemes
    )
    drawn = [_draw(plot, runs, links) for plot in (*_BEFORE_SCHEMES, *shadows, *_AFTER_SCHEMES)]
    return [chart for chart in drawn if chart is not None]


def evaluation_chart(runs: Sequence[RunData]) -> Chart | None:
    """Held-out gain over training, where some run was evaluated more than twice."""
    if all(len(run.evaluations) <= 2 for run in runs):
        return None
    lines = []
    for number, run in enumerate(runs):
        intervals = [row.get("gain/ci95") or (None, None) for row in run.evaluations]
        lines.append(
            Series(
                label=run.label,
                xs=[row["step"] for row in run.evaluations],
                ys=[row.get("gain/mean") for row in run.evaluations],
                low=[low for low, _ in intervals],
                high=[high for _, high in intervals],
                color=number,
                dash=number,
            )
        )
    return line_chart("Held-out gain during training (band: 95 %)", "nats per token", lines)


def _draw(plot: _Plot, runs: Sequence[RunData], links: Sequence[int]) -> Chart | None:
    lines = []
    for number, run in enumerate(runs):
        xs = [row["step"] for row in run.metrics]
        for place, (key, name) in enumerate(plot.lines):
            ys = [row.get(key) for row in run.metrics]
            low, high = _band(run, key)
            label = name if len(runs) == 1 else run.label
            if len(runs) > 1 and len(plot.lines) > 1:
                label = f"{run.label}: {name}"
            # Colour tells the run, or the metric of a single run; the dash tells the metric, or
            # helps the colour where there is only one.
            color = place if len(runs) == 1 else number
            dash = place if len(plot.lines) > 1 else number
            lines.append(Series(label, xs, ys, low, high, color=color, dash=dash))
    return line_chart(plot.title, plot.unit, lines, limits=plot.limits, links=links)


def _band(run: RunData, key: str) -> tuple[Edge, Edge]:
    if key != "reward/mean":
        return None, None
    low: list[float | None] = []
    high: list[float | None] = []
    for row in run.metrics:
        mean, sem = row.get(key), row.get("reward/sem")
        if mean is None or sem is None:
            low.append(None)
            high.append(None)
        else:
            low.append(mean - sem)
            high.append(mean + sem)
    return low, high
