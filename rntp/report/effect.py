"""What training did on held-out pages: the four cells, the deciles, and sentences that say it."""

from collections.abc import Callable
from dataclasses import dataclass

from rntp.errors import RntpError
from rntp.report.curves import Chart, Series, line_chart
from rntp.report.numbers import includes_zero, interval, number, signed
from rntp.report.runs import RunData

Compare = Callable[[dict, dict], dict]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the four-cell table; ready to print, an interval may be empty."""

    name: str
    no_think: str
    no_think_ci: str
    think: str
    think_ci: str
    gain: str
    gain_ci: str


@dataclass(frozen=True, slots=True)
class DecileRow:
    """One tenth of the continuation tokens, easy to hard; ready to print."""

    decile: int
    num_tokens: int
    nll_range: str
    gain_before: str
    gain_after: str


@dataclass(frozen=True, slots=True)
class Effect:
    """The held-out section of one run. Empty tables stand with a sentence that says why.

    decile_model: the third model that ranked the tokens, "" where the untrained model did.
    """

    label: str
    rows: list[Row]
    sentences: list[str]
    deciles: list[DecileRow]
    decile_chart: Chart | None
    decile_model: str


def effect_of(run: RunData, compare: Compare) -> Effect:
    """compare(before, after): the differences with their intervals, in nats per token."""
    before, after = run.before, run.after
    known = [("before training", before), (_after_name(after), after)]
    rows = [_row(name, evaluation) for name, evaluation in known if evaluation is not None]
    deciles, chart = _deciles(before, after)
    third = str((run.config.get("evaluation") or {}).get("decile_model", ""))
    if before is None and after is None:
        return Effect(run.label, [], ["This run has no evaluation yet."], [], None, third)
    if before is None or after is None:
        sentences = _one_sided(before, after)
    else:
        try:
            change = compare(before, after)
        except (RntpError, ValueError) as error:
            sentences = [f"The two evaluations cannot be compared: {error}."]
        else:
            rows.append(_change_row(change))
            sentences = _sentences(change, before, after)
    return Effect(run.label, rows, sentences, deciles, chart, third)


def _row(name: str, evaluation: dict) -> Row:
    return Row(
        name=name,
        no_think=number(evaluation.get("nll/no_think")),
        no_think_ci="",
        think=number(evaluation.get("nll/think")),
        think_ci="",
        gain=signed(evaluation.get("gain/mean")),
        gain_ci=interval(evaluation.get("gain/ci95")),
    )


def _change_row(change: dict) -> Row:
    cells = [change["nll/no_think"], change["nll/think"], change["gain/mean"]]
    (no_think, no_ci), (think, think_ci), (gain, gain_ci) = (
        (signed(cell["change"]), interval(cell["ci95"])) for cell in cells
    )
    return Row("change", no_think, no_ci, think, think_ci, gain, gain_ci)


def _tasks(change: dict, after: dict) -> list[str]:
    """What became of the pass rate, where there are tasks."""
    row = change.get("tasks/pass_at_1")
    if row is None:
        return []
    count = after["tasks"]["num_tasks"]
    return [
        f"Of {count} held-out tasks an attempt solved {row['before']:.1%} before training and "
        f"{row['after']:.1%} after it; 95 % interval of the change, over tasks: "
        f"{interval(row['ci95'])}."
    ]


def _after_name(after: dict | None) -> str:
    return "after training" if after is None else f"after {after['step']:,} steps"


def _one_sided(before: dict | None, after: dict | None) -> list[str]:
    if before is not None:
        return [
            _gain_sentence("Before training", before),
            "There is no evaluation after training yet, so nothing can be said about its effect.",
        ]
    assert after is not None
    return [
        _gain_sentence(f"After {after['step']:,} steps", after),
        "The model was not evaluated before training, so nothing can be said about its effect.",
    ]


def _sentences(change: dict, before: dict, after: dict) -> list[str]:
    gain, no_think = change["gain/mean"], change["nll/no_think"]
    return [
        _gain_sentence("Before training", before),
        _gain_sentence(f"After {after['step']:,} steps", after),
        _change_sentence("gain from thinking", gain["change"], gain["ci95"]),
        _change_sentence("loss without a thought", no_think["change"], no_think["ci95"]),
        _against_untrained(change["nll/no_think"]["before"], change["nll/think"]["after"]),
        f"Thoughts went from {_thoughts(before)} to {_thoughts(after)}.",
        *_tasks(change, after),
        f"Measured on {change['num_docs']:,} held-out documents, {change['num_tokens']:,} "
        f"continuation tokens, horizon {after['horizon']}; the intervals cover the choice of "
        "documents, not the choice of the seed: this is one run.",
    ]


def _gain_sentence(when: str, evaluation: dict) -> str:
    gain, bounds = evaluation.get("gain/mean"), evaluation.get("gain/ci95")
    nothing = includes_zero(bounds)
    if gain is None or nothing is None:
        return f"{when}, the gain from thinking was not measured or is not finite."
    if nothing:
        return (
            f"{when}, no effect of thinking on the loss is shown: the gain is {signed(gain)} nats "
            f"per token and its 95 % interval, {interval(bounds)}, includes 0."
        )
    verb = "lowers" if gain > 0 else "raises"
    return (
        f"{when}, thinking first {verb} the loss of the held-out continuation by "
        f"{number(abs(gain))} nats per token (95 % interval of the gain {interval(bounds)})."
    )


def _change_sentence(what: str, change: float | None, bounds: list[float | None] | None) -> str:
    nothing = includes_zero(bounds)
    if change is None or nothing is None:
        return f"The change of the {what} was not measured or is not finite."
    if nothing:
        return (
            f"Training is not shown to have changed the {what}: {signed(change)} nats per token, "
            f"95 % interval {interval(bounds)} includes 0."
        )
    verb = "raised" if change > 0 else "lowered"
    return (
        f"Training {verb} the {what} by {number(abs(change))} nats per token "
        f"(95 % interval of the change {interval(bounds)})."
    )


def _against_untrained(no_think_before: float | None, think_after: float | None) -> str:
    """The comparison that a gain over the model's own, perhaps worsened, baseline can hide."""
    if no_think_before is None or think_after is None:
        return "Trained-with-thought and untrained-without cannot be compared: not finite."
    verdict = "below" if think_after < no_think_before else "not below"
    return (
        f"With a thought, the trained model's loss ({number(think_after)}) is {verdict} that of "
        f"the untrained model without one ({number(no_think_before)})."
    )


def _thoughts(evaluation: dict) -> str:
    tokens = number(evaluation.get("thought/tokens_mean"), 1)
    closed = evaluation.get("thought/closed_frac")
    share = "an unknown share" if closed is None else f"{100 * closed:.0f} %"
    return f"{tokens} tokens ({share} closed by the model)"


def _deciles(before: dict | None, after: dict | None) -> tuple[list[DecileRow], Chart | None]:
    sides = [("before", before), ("after", after)]
    found = {
        name: {row["decile"]: row for row in evaluation.get("deciles", [])}
        for name, evaluation in sides
        if evaluation is not None
    }
    base = found.get("before") or found.get("after") or {}
    rows = [
        DecileRow(
            decile=decile,
            num_tokens=row["num_tokens"],
            nll_range=f"{number(row['nll_low'], 2)} to {number(row['nll_high'], 2)}",
            gain_before=signed(found.get("before", {}).get(decile, {}).get("gain")),
            gain_after=signed(found.get("after", {}).get(decile, {}).get("gain")),
        )
        for decile, row in sorted(base.items())
    ]
    lines = [
        Series(
            label=f"{name} training",
            xs=sorted(deciles),
            ys=[deciles[decile]["gain"] for decile in sorted(deciles)],
            color=place,
            dash=place,
        )
        for place, (name, deciles) in enumerate(found.items())
        if deciles
    ]
    title = "Gain by difficulty of the token"
    return rows, line_chart(title, "nats per token", lines, "decile of no-think loss, easy to hard")
