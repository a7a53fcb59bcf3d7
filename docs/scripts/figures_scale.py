"""Make the tables of the page on scale from what is committed under experiments/scale."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "experiments/scale/results"


def rows_of(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def read(name: str) -> Any:
    """Read a result."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def scale_check() -> str:
    """Write predicted beside measured steps, and the errors."""
    found = read("check.json")
    rows = []
    for run in found["runs"]:
        case = run["case"]
        sizes = ", ".join(
            f"{name} {case[key]}"
            for name, key in (
                ("width", "hidden"),
                ("layers", "layers"),
                ("L", "context"),
                ("K", "positions"),
                ("G", "thoughts"),
                ("T", "budget"),
                ("docs", "docs"),
            )
        )
        rows.append(
            [
                str(case["ranks"]),
                sizes,
                f"{run['predicted_s']:.2f} s",
                f"{run['measured_s']:.2f} s",
                f"{run['predicted_s'] / run['measured_s'] - 1:+.0%}".replace("-", "−"),
                f"{run['predicted_gb']:.2f} GB",
                f"{run['measured_gb']:.2f} GB",
                f"{run['predicted_gb'] / run['measured_gb'] - 1:+.0%}".replace("-", "−"),
            ]
        )
    head = ["ranks", "sizes", "predicted", "measured", "error", "memory", "measured", "error"]
    load = max(run["load_average"][1] for run in found["runs"])
    share = min(run["cpu_share"] for run in found["runs"])
    return rows_of(head, rows) + (
        f"\n\nMedian error of the step time {found['median_error_s']:.1%}, worst "
        f"{found['worst_error_s']:.0%}; of memory {found['median_error_gb']:.1%}, worst "
        f"{found['worst_error_gb']:.0%}. Two cores, shared with other programs: a load average of "
        f"up to {load:.1f}, so that a step had a core for as little as {share:.0%} of its time; "
        "measured seconds are those on the clock times that share (`time/cpu_share`)."
    )


def scale_plans() -> str:
    """Write a row for each of the plans."""
    rows = []
    for plan in read("plans.json")["plans"]:
        sampling = plan["cluster"]["that sample"]
        memory = sum(plan["memory of a rank"].values()) / 1e9
        fits = not any(line.startswith("DOES NOT FIT") for line in plan["warnings"])
        devices = f"{plan['cluster']['that train']:,}"
        rows.append(
            [
                plan["name"],
                f"{plan['model']['parameters'] / 1e9:.3g} B",
                devices + (f" + {sampling:,}" if sampling else ""),
                f"{plan['flop of the run']:.0e}",
                f"{plan['tokens']['of text']:.1e}",
                f"{plan['step_s']:.3g} s",
                f"{plan['mfu']:.0%}",
                f"{memory:,.0f} GB" + ("" if fits else " (does not fit)"),
                f"{plan['simulated']['goodput']:.0%}",
                f"{plan['hours'] / 24:,.3g}",
                f"{plan['dollars']:,.2g}",
            ]
        )
    head = [
        "plan",
        "model",
        "devices: train + sample",
        "FLOP",
        "tokens of text",
        "step",
        "of FLOP/s",
        "memory of a rank",
        "goodput",
        "days",
        "dollars",
    ]
    return rows_of(head, rows)


def scale_parts() -> str:
    """Write where the time of each plan's step goes: the four largest parts."""
    rows = []
    for plan in read("plans.json")["plans"]:
        parts = {
            f"{phase}, {name.replace('_', ' ')}": seconds
            for phase, found in plan["seconds of a step"].items()
            for name, seconds in found.items()
            if not (plan["cluster"]["that sample"] and phase == "rollout")
        }
        whole = sum(parts.values())
        largest = sorted(parts, key=lambda name: -parts[name])[:4]
        rows.append([plan["name"], *(f"{n} {parts[n] / whole:.0%}" for n in largest)])
    return rows_of(["plan", "most", "second", "third", "fourth"], rows)


MAKERS = {"scale_check": scale_check, "scale_plans": scale_plans, "scale_parts": scale_parts}
