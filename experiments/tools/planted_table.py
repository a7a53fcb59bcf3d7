"""Tabulate runs on planted tools: experiments/tools/RESULTS.md, and results/planted.json.

    python experiments/tools/planted_table.py runs/tools-planted-*

Every figure is of the runs' own evaluations before and after training.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.run.log import read_metrics

RESULTS = Path(__file__).parent / "RESULTS.md"
JSON = "results/planted.json"  # beside the table
IDEAL = {"needed, another page": 2.303, "needed, a sum": 4.188}
OTHERS = ("easy", "impossible")
CONTROLS = {
    "oracle": "the right call in its place",
    "other_results": "another page's result",
    "no_results": "its result left out (tool off)",
    "shuffled": "another page's thought",
}
TARGETS = """\
Targets: of the right call's gain, as the reader reads it, from below 30 % to 95 %; calls at 5 % of
the easy tokens at most; with another page's result, or none, no gain. Nats of the token behind the
thought, held-out pages; ideal: the entropy that the right call takes away from who knows nothing
without it. Made by `make tools-planted`."""


def calling_share(pages: list[dict[str, Any]], name: str) -> float:
    """Share of the thoughts at tokens of a class that made a call."""
    calls = [
        bool(thought.get("calls"))
        for page in pages
        for at in page["positions"]
        if at["class"] == name
        for thought in at["thoughts"]
    ]
    return sum(calls) / len(calls)


def of_oracle(row: dict[str, Any]) -> float:
    """Gain over that of the right call."""
    return float(row["gain"] / row["controls"]["oracle"]["gain"])


def of_right_calls(classes: dict[str, Any]) -> float:
    """Of both kinds together: gain over that of the right calls, by tokens."""
    needed = [classes[name] for name in IDEAL]
    found = sum(row["gain"] * row["num_tokens"] for row in needed)
    return float(
        found / sum(row["controls"]["oracle"]["gain"] * row["num_tokens"] for row in needed)
    )


def facts_of(run: Path) -> dict[str, Any]:
    """What a run's evaluations say, before and after."""
    config = Config.load(run / "config.yaml")
    steps = [json.loads(p.read_text()) for p in sorted((run / "eval").glob("step_????????.json"))]
    names = (*IDEAL, *OTHERS)
    classes = [{name: steps[n]["classes"][name] for name in names} for n in (0, -1)]
    manifest = json.loads((run / "manifest.json").read_text())
    return {
        "seed": config.run.seed,
        "config_digest": config.digest(),
        "data_digest": manifest["data_digest"],
        "git": manifest["git"],
        "steps": config.run.steps,
        "minutes": sum(row["time/step_s"] for row in read_metrics(run)) / 60,
        "of_right_calls": [of_right_calls(each) for each in classes],
        "classes": classes,
        "calls": [
            {name: calling_share(steps[n]["pages"], name) for name in names} for n in (0, -1)
        ],
    }


def rows(found: list[dict[str, Any]]) -> list[str]:
    """The table, a row for each number and a column for each run."""
    lines = [
        "| | ideal | " + " | ".join(f"seed {run['seed']}" for run in found) + " |",
        "|---|---|" + "---|" * len(found),
    ]

    def row(name: str, ideal: str, cell: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {name} | {ideal} | " + " | ".join(map(cell, found)) + " |")

    def change(values: list[float], form: str) -> str:
        return " → ".join(form.format(value) for value in values)

    row(
        "needed, both: of the right calls' gain",
        "100 %",
        lambda run: change(run["of_right_calls"], "{:.1%}"),
    )
    for name, ideal in IDEAL.items():
        row(
            f"{name}: of the right call's gain",
            "100 %",
            lambda run, name=name: change([of_oracle(c[name]) for c in run["classes"]], "{:.1%}"),
        )
        row(
            f"{name}: gain",
            f"{ideal:.3f}",
            lambda run, name=name: change([c[name]["gain"] for c in run["classes"]], "{:+.3f}"),
        )
        for control, label in CONTROLS.items():
            row(
                f"{name}: {label}",
                "",
                lambda run, name=name, control=control: _control(run, name, control),
            )
    for name in (*IDEAL, *OTHERS):
        row(
            f"{name}: thoughts that call",
            "",
            lambda run, name=name: change([c[name] for c in run["calls"]], "{:.1%}"),
        )
    for name in OTHERS:
        row(
            f"{name}: gain",
            "0",
            lambda run, name=name: change([c[name]["gain"] for c in run["classes"]], "{:+.4f}"),
        )
    row("steps", "", lambda run: str(run["steps"]))
    row("minutes of training, wall clock", "", lambda run: f"{run['minutes']:.1f}")
    return lines


def _control(run: dict[str, Any], name: str, control: str) -> str:
    found = run["classes"][-1][name]["controls"].get(control)
    return f"{found['gain']:+.3f}" if found else "no thought had a result"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = sorted((facts_of(run) for run in arguments.runs), key=lambda run: run["seed"])
    text = "\n".join(["# Planted tools", "", TARGETS, "", *rows(found), ""])
    arguments.out.write_text(text, encoding="utf-8")
    path = arguments.out.parent / JSON
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
