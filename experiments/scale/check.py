"""Is `rntp plan` right? Costs fitted to some runs predict others, of other sizes and ranks.

    python experiments/scale/check.py --out experiments/scale/results

Every run is `rntp train` of a made-up model, as a user starts it. Runs of both lists take turns, so
that a busy minute of the machine hits both; what was measured is kept in runs.json, and the same
command goes on from there. calibration.json has the costs, check.json and check.txt the comparison.
"""

import argparse
import json
import statistics
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rntp.plan.calibrate import calibrated, points_of
from rntp.plan.cases import Case, calibration_cases
from rntp.plan.measure import measure_all, median_of
from rntp.plan.predict import memory_bytes
from rntp.runtime.files import write_json, write_text_atomic
from rntp.runtime.provenance import device_name
from rntp.show import columns

CASES = (
    Case(hidden=192, layers=6, vocabulary=4096, context=192, positions=3, budget=24),
    Case(hidden=320, layers=4, context=160, thoughts=6),
    Case(hidden=64, layers=8, vocabulary=1024, context=256, thoughts=8, budget=12),
    Case(hidden=256, layers=6, vocabulary=8192, context=96, thoughts=2, budget=20, docs=3),
    Case(hidden=448, layers=3, positions=3, budget=10, horizon=12),
    Case(layers=3, context=384, positions=4, budget=8, horizon=16, docs=1),
    Case(hidden=192, layers=10, vocabulary=1024, positions=1, thoughts=16),
    Case(layers=6, docs=6, microbatch=512),
    Case(hidden=256, layers=2, vocabulary=12288, context=64),
    Case(hidden=384, layers=8, thoughts=6, budget=12),
    Case(hidden=384, layers=6, context=512, positions=4, docs=4, microbatch=8192, steps=5),
    Case(hidden=768, layers=8, vocabulary=16384, steps=5),
    Case(hidden=192, layers=4, docs=4, ranks=2),
    Case(hidden=320, layers=6, ranks=2),
    Case(layers=6, docs=6, microbatch=600, ranks=2),
    Case(hidden=256, layers=3, vocabulary=8192, context=192, ranks=2),
)
DTYPE, DEVICE = "float32", "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rounds", type=int, default=3, help="times that every run is measured")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    fitted = calibration_cases(DEVICE, ranks=2)
    assert not set(fitted) & set(CASES)
    turns = [case for pair in zip_longest(fitted, CASES) for case in pair if case]
    measure_all(
        turns, out / "runs.json", dtype=DTYPE, device=DEVICE, say=_say, rounds=arguments.rounds
    )
    done = json.loads((out / "runs.json").read_text())
    rates = calibrated(
        [median_of(case, done, DTYPE) for case in fitted], device_name(DEVICE), DEVICE
    )
    write_json(out / "calibration.json", rates.as_dict())
    rows = [compare(case, median_of(case, done, DTYPE), rates) for case in CASES]
    result = {"command": "make plan-check", "runs": rows, **summary(rows)}
    write_json(out / "check.json", result)
    write_text_atomic(out / "check.txt", table(result) + "\n")
    print(table(result))


def compare(case: Case, measured: dict[str, Any], rates: Any) -> dict[str, Any]:
    """Put what was predicted of a run beside what was measured of it."""
    point, shape, config = points_of(case)
    predicted = {p: sum(found.values()) for p, found in rates.seconds(point).items()}
    return {
        "case": case.as_dict(),
        "parameters": shape.parameters,
        "predicted_s": sum(predicted.values()),
        "measured_s": measured["step_s"],
        "clock_s": measured["clock_s"],
        "cpu_share": measured["cpu_share"],
        "phases": {p: [predicted[p], measured["seconds"][p]] for p in predicted},
        "predicted_gb": memory_bytes(config, shape, case.ranks, rates) / 1e9,
        "measured_gb": measured["memory_gb"],
        "rounds": measured["rounds"],
        "load_average": measured["load_average"],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Take the median and the worst of the relative errors."""
    found = {}
    for name in ("s", "gb"):
        errors = [abs(r[f"predicted_{name}"] / r[f"measured_{name}"] - 1) for r in rows]
        found[f"median_error_{name}"] = statistics.median(errors)
        found[f"worst_error_{name}"] = max(errors)
    return found


def table(result: dict[str, Any]) -> str:
    """Lay the comparison out for people."""
    sizes = ("hidden", "layers", "vocabulary", "context", "positions", "thoughts", "budget")
    sizes += ("docs", "ranks")
    heads = ["hidden", "layers", "vocab", "L", "K", "G", "T", "docs", "ranks"]
    lines = [[*heads, "predicted", "measured", "error", "memory", "measured", "error", "CPU"]]
    for row in result["runs"]:
        error = row["predicted_s"] / row["measured_s"] - 1
        memory = row["predicted_gb"] / row["measured_gb"] - 1
        lines.append(
            [
                *(str(row["case"][size]) for size in sizes),
                f"{row['predicted_s']:.3f} s",
                f"{row['measured_s']:.3f} s",
                f"{error:+.0%}",
                f"{row['predicted_gb']:.2f} GB",
                f"{row['measured_gb']:.2f} GB",
                f"{memory:+.0%}",
                f"{row['cpu_share']:.0%}",
            ]
        )
    load = max(row["load_average"][1] for row in result["runs"])
    return (
        f"{columns(lines)}\n\nstep time: median error {result['median_error_s']:.1%}, worst "
        f"{result['worst_error_s']:.0%}; memory: median {result['median_error_gb']:.1%}, worst "
        f"{result['worst_error_gb']:.0%}. CPU: share of the time that the step could run in which "
        f"it did; measured seconds are times that. Load average up to {load:.1f} on the cores."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
