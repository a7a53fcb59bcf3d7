"""What tools gain: on planted pages, and searches on real text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "experiments/tools/results"
FIXED = RESULTS / "fixed.json"
PLANTED = RESULTS / "planted.json"
SEARCH = RESULTS / "search.json"
OPENED = RESULTS / "opened.json"
WIDE = RESULTS / "opened_wide.json"
PAGES = RESULTS / "pages.json"
DOCTEST = RESULTS / "doctest_opened.json"
PLANTED_CONTROLS = {
    "other_results": "another page's result",
    "no_results": "its result left out",
}
ASKED = {
    "last_words": "the last 12 words before the position",
    "rare_words": "5 rare words nearby",
    "others_words": "another document's last words (control)",
}


def search_fixed() -> str:
    """Write what is gained by passages that fixed queries find, before anything is sampled."""
    found = json.loads(FIXED.read_text(encoding="utf-8"))
    lines = ["| searched for | gain, nats a token [95 % interval] |", "| --- | --- |"]
    lines += [f"| {told} | {_gain(found, name)} |" for name, told in ASKED.items()]
    lines += [
        "",
        f"{found['num_positions']} random positions in {found['num_docs']} held-out documents; "
        f"loss without a thought {found['nll/no_think']:.3f}.",
    ]
    return "\n".join(lines)


def fixed_gain() -> str:
    """Say what the best rule gains, and its control."""
    found = json.loads(FIXED.read_text(encoding="utf-8"))
    return (
        f"{_gain(found, 'last_words')} nats a token for what the last 12 words find; for "
        f"another document's words {_gain(found, 'others_words')}. {_learnt()}"
    )


def search_opened() -> str:
    """Write what calls that are begun for the policy gain, seed by seed, before RL and after."""
    runs = json.loads(OPENED.read_text(encoding="utf-8"))
    lines = [
        "| before → after | " + " | ".join(f"seed {run['seed']}" for run in runs) + " |",
        "| --- |" + " --- |" * len(runs),
    ]
    rows = {
        "**gain of thinking**": "learned",
        "the thought's prediction alone": "alone",
        "nothing asked but the last 12 words": "last_words",
        "another document's result (control)": "other_results",
        "learned over fixed": "learned_over_fixed",
        "loss without a thought, over plain training": "over_plain",
    }
    for told, name in rows.items():
        cells = [
            " → ".join(_with_interval(*run[w][name]) for w in ("before", "after") if name in run[w])
            for run in runs
        ]
        if any(cells):
            lines.append(f"| {told} | " + " | ".join(cells) + " |")
    losses = [f"{r['before']['nll/no_think']:.3f} → {r['after']['nll/no_think']:.3f}" for r in runs]
    lines.append("| loss without a thought | " + " | ".join(losses) + " |")
    count = runs[0]["after"]["positions"]
    lines += [
        "",
        f"Nats a token [95 % interval over documents]; {count} held-out documents each.",
    ]
    return "\n".join(lines)


def opened_gain() -> str:
    """Say what such calls gain at the same places in all seeds, their control, and what they make
    of whole pages."""
    runs = json.loads(OPENED.read_text(encoding="utf-8"))
    wide = json.loads(WIDE.read_text(encoding="utf-8"))
    others = ", ".join(_signed(run["after"]["other_results"][0], 3) for run in runs)
    seeds = [row["gain"] for name, row in wide.items() if name != "before"]
    after = ", ".join(_with_interval(*gain) for gain in seeds)
    return (
        f"{after} nats a token (before RL {_signed(wide['before']['gain'][0], 3)}); another "
        f"document's {others}. {whole_pages()}"
    )


def whole_pages() -> str:
    """Say what searches make of whole held-out pages."""
    rows = json.loads(PAGES.read_text(encoding="utf-8"))["rows"]
    always = next(row for row in rows if row["rule"] == "every so many tokens")
    low, high = always["saved_ci95"]
    return (
        f"Whole pages {rows[0]['bits_per_byte']:.3f} → {always['bits_per_byte']:.3f} bits a byte, "
        f"−{always['saved']:.3f} [{low:.3f}, {high:.3f}]"
    )


def outputs_gain() -> str:
    """Say what running the page's session gains where an output is next, and the control."""
    outputs = json.loads(DOCTEST.read_text(encoding="utf-8"))["outputs"]["Outputs"]
    return (
        f"{_with_interval(*outputs['thoughts'])} nats a token of {outputs['positions']} outputs; "
        f"another page's result {_with_interval(*outputs['other_results'])}"
    )


def _learnt() -> str:
    """Say what learned queries gain, seed by seed, before RL and after."""
    runs = json.loads(SEARCH.read_text(encoding="utf-8"))
    told = [
        f"{_with_interval(*run['before']['learned'])} → {_with_interval(*run['after']['learned'])}"
        for run in runs
    ]
    seeds = "one seed" if len(runs) == 1 else f"{len(runs)} seeds"
    return f"Queries that the policy writes, before and after RL, {seeds}: {'; '.join(told)}"


def planted() -> str:
    """Write what RL makes of pages that need another page or a sum, seed by seed."""
    found = json.loads(PLANTED.read_text(encoding="utf-8"))
    lines = [
        "| before → after | " + " | ".join(f"seed {run['seed']}" for run in found) + " |",
        "| --- |" + " --- |" * len(found),
    ]

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(map(cell, found)) + " |")

    row(
        "needed, both: of the right calls' gain",
        lambda run: " → ".join(f"{share:.1%}" for share in run["of_right_calls"]),
    )
    for name in ("needed, another page", "needed, a sum"):
        row(
            f"{name}: of the right call's gain",
            lambda run, name=name: " → ".join(f"{_of_right(c[name]):.1%}" for c in run["classes"]),
        )
        for control, told in PLANTED_CONTROLS.items():
            row(
                f"{name}: {told}, nats",
                lambda run, name=name, control=control: _signed(
                    run["classes"][-1][name]["controls"][control]["gain"], 2
                ),
            )
    for name in ("needed, another page", "needed, a sum", "easy", "impossible"):
        row(
            f"{name}: thoughts that call",
            lambda run, name=name: " → ".join(f"{calls[name]:.1%}" for calls in run["calls"]),
        )
    return "\n".join(lines)


def planted_calls() -> str:
    """Say how much of the right calls' gain is found, and where it is not asked."""
    found = json.loads(PLANTED.read_text(encoding="utf-8"))

    before, after = (_listed([run["of_right_calls"][n] for run in found]) for n in (0, -1))
    easy = max(run["calls"][-1][name] for run in found for name in ("easy", "impossible"))
    return (
        f"{after} % of the right calls' gain where another page has the answer, or it is a sum "
        f"({len(found)} seeds, from {before} %); calls at {easy:.1%} of the tokens that need none"
    )


def _listed(shares: list[float]) -> str:
    """Percentages as people list them."""
    told = [f"{100 * share:.0f}" for share in shares]
    return f"{', '.join(told[:-1])} and {told[-1]}"


def _of_right(row: dict[str, Any]) -> float:
    return float(row["gain"] / row["controls"]["oracle"]["gain"])


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _gain(found: dict[str, Any], name: str) -> str:
    control = found["memory"]["controls"][name]
    low, high = control["gain_ci95"]
    return _with_interval(control["gain"], low, high)


def _with_interval(mean: float, low: float, high: float) -> str:
    return f"{_signed(mean, 3)} [{_signed(low, 3)}, {_signed(high, 3)}]"


MAKERS: dict[str, Callable[[], str]] = {
    "search_fixed": search_fixed,
    "search_opened": search_opened,
    "planted_tools": planted,
}
