"""The controls of an evaluation, before and after training: one table, ready to print."""

from dataclasses import dataclass
from typing import Any

from rntp.report.numbers import MISSING, interval, number, signed
from rntp.report.runs import RunData


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One measurement. interval: 95 %, of the difference that `change` is; may be empty."""

    name: str
    no_think: str
    think: str
    change: str
    interval: str


@dataclass(frozen=True, slots=True)
class Checks:
    """The rows of one evaluation. notes: sentences that say how they are to be read."""

    when: str
    rows: list[CheckRow]
    notes: list[str]


def checks_of(run: RunData) -> list[Checks]:
    """Collect the checks of both evaluations; what was not measured then is left out."""
    known = [("before training", run.before), ("after training", run.after)]
    return [
        _checks(when, evaluation)
        for when, evaluation in known
        if evaluation is not None and "bits_per_byte" in evaluation
    ]


def _checks(when: str, found: dict[str, Any]) -> Checks:
    bits, calibration = found["bits_per_byte"], found["calibration"]
    rows = [
        CheckRow(
            f"loss, bound of {row['thoughts']} thoughts, nats per token",
            number(found["nll/no_think"]),
            number(row["nll/think"]),
            signed(_minus(row["gain"])),
            _flipped(row["gain_ci95"]),
        )
        for row in found["bound"]
        if row["thoughts"] > 1
    ]
    rows.append(
        CheckRow(
            "bits per byte",
            number(bits["no_think"]),
            number(bits["think"]),
            signed(_minus(bits["saved"])),
            _flipped(bits["saved_ci95"]),
        )
    )
    if "memory" in found:
        rows += _memory(found["memory"])
    rows += [_accuracy(row) for row in found["accuracy"]]
    rows += [
        CheckRow(
            name,
            number(calibration["no_think"][key]),
            number(calibration["think"][key]),
            signed(calibration[f"{key}_change"]),
            interval(calibration[f"{key}_change_ci95"]),
        )
        for key, name in (("ece", "expected calibration error"), ("brier", "Brier score"))
    ]
    notes = [_net(found["net_gain"]), *_thoughts(found["thoughts"])]
    if "memory" in found and found["memory"]["recovered"] is not None:
        share, (low, high) = found["memory"]["recovered"], found["memory"]["recovered_ci95"]
        notes.insert(
            0,
            f"Memories bring back {100 * share:.0f} % of what a window of "
            f"{found['memory']['window']} tokens loses "
            f"(95 % interval [{100 * low:.0f}, {100 * high:.0f}]).",
        )
    return Checks(when, rows, notes)


def _memory(found: dict[str, Any]) -> list[CheckRow]:
    """Bar and bound of memories: other things that are read in their place."""
    window, alone = f"behind {found['window']} tokens", found["nll/window"]
    names = (
        ("gain", f"loss {window}, and with the memory"),
        ("longer", f"loss {window}, and behind {found['longer_by']} more"),
        ("whole", f"loss {window}, and behind the whole context"),
    )
    return [
        CheckRow(
            f"{name}, nats per token",
            number(alone),
            number(alone - found[key]),
            signed(_minus(found[key])),
            _flipped(found[f"{key}_ci95"]),
        )
        for key, name in names
    ]


def _accuracy(row: dict[str, Any]) -> CheckRow:
    above, count = row["entropy_above"], row["num_positions"]
    where = f"entropy > {above} nats, " if above else ""
    name = f"next-token accuracy ({where}{count:,} positions)"
    if not count:
        return CheckRow(name, MISSING, MISSING, MISSING, "")
    return CheckRow(
        name,
        number(row["no_think"]),
        number(row["think"]),
        signed(row["change"]),
        interval(row["change_ci95"]),
    )


def _net(net: dict[str, Any]) -> str:
    price = net["bits_per_thought_token"]
    even = net["break_even"]
    return (
        f"Net gain at {price:g} bits a thought token: {signed(net['net'], 2)} bits a thought "
        f"(95 % interval {interval(net['net_ci95'], 2)})"
        + ("." if even is None else f"; it is 0 at {number(even, 4)} bits a token.")
    )


def _thoughts(thoughts: dict[str, Any]) -> list[str]:
    quantiles, opening = thoughts["quantiles"], thoughts["opening"]
    variety = ", ".join(number(value, 2) for value in thoughts["distinct"].values())
    said = [
        f"Thoughts have {number(quantiles['10'], 0)}, {number(quantiles['50'], 0)}, "
        f"{number(quantiles['90'], 0)} tokens (10, 50, 90 %); distinct 1-, 2-, 3-grams {variety}."
    ]
    if opening["share"] is not None:
        said.append(f"{100 * opening['share']:.0f} % of them begin with “{opening['text']}”.")
    for row in thoughts["leak"]:
        if row["other"] is not None:
            said.append(
                f"{100 * row['own']:.1f} % of the {row['n']}-grams of a continuation stand in its "
                f"thought, {100 * row['other']:.1f} % of those of another document's continuation "
                f"(difference {signed(row['own_minus_other'])}, 95 % interval "
                f"{interval(row['own_minus_other_ci95'])})."
            )
    return said


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _flipped(bounds: list[float | None]) -> str:
    """The interval of the negative."""
    low, high = bounds
    return interval([_minus(high), _minus(low)])
