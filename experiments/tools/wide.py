"""Measure the start and all seeds of `make tools-search` at the same places, and more of them.

    python experiments/tools/wide.py

A run's own evaluation has 96 positions, other ones for every seed, and an interval of ±0.04 nats.
Here 120 held-out documents have three positions each, the same for all, drawn with a seed that no
run had. Writes OPENED_WIDE.md and results/opened_wide.json; the same command goes on after a kill.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rntp.evaluation.resampling import interval_of_some
from rntp.runtime.files import write_json
from rntp.runtime.provenance import environment

HERE = Path(__file__).parent
KEPT = Path("build/tools-search/wide")
SEED = 7
SETS = (
    f"run.seed={SEED}",
    "evaluation.docs=120",
    "evaluation.placement={random: {positions_per_doc: 3}}",
    "evaluation.controls=[]",
)
BEFORE = "before"
HEAD = """\
# Search on real text: all seeds at the same positions

Runs and thoughts of [OPENED.md](OPENED.md), measured at three positions of each of 120 held-out
documents, the same for all, which no evaluation of a run has seen. Gain over the same model without
a thought, nats a token of the 16 behind the position, 95 % interval over documents. Made by
`python experiments/tools/wide.py` behind `make tools-search`.

"""
OF = ("step", "seed", "config_digest", "evaluation_digest", "data_digest", "heldout_digest", "git")
ROWS = {
    "gain": "gain of thinking",
    "change": "… less that before",
    "nll": "loss without a thought",
    "nll_change": "… less that before",
    "helped": "share of thoughts with a gain",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--table", action="store_true", help="from what is there")
    arguments = parser.parse_args()
    targets = {BEFORE: HERE / "opened.yaml"} | {
        f"seed {seed}": Path(f"runs/tools-opened-{seed}") for seed in arguments.seeds.split(",")
    }
    KEPT.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for name, target in targets.items():
            measure(target, _file(name))
    found = {
        name: json.loads(_file(name).read_text(encoding="utf-8"))
        for name in targets
        if _file(name).is_file()
    }
    rows = compared(found)
    write_json(HERE / "results/opened_wide.json", rows)
    (HERE / "OPENED_WIDE.md").write_text(HEAD + table(rows), encoding="utf-8")
    print(table(rows))


def measure(target: Path, out: Path) -> None:
    """Evaluate a run, or the base model of a config, where that has not been done."""
    if not out.is_file():
        sets = [part for pair in SETS for part in ("--set", pair)]
        command = [sys.executable, "-m", "rntp", "eval", str(target), *sets, "--out", str(out)]
        subprocess.run(command, check=True)
        made = {"git": environment("cpu")["git"]}
        write_json(out, {**json.loads(out.read_text(encoding="utf-8")), **made})


def _file(name: str) -> Path:
    return KEPT / f"{name.replace(' ', '_')}.json"


def compared(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Gains and losses of each evaluation, and how far they are from those before.

    Raises ValueError where positions are not the same.
    """
    sums = {name: _sums(result) for name, result in found.items()}
    places = [each["places"] for each in sums.values()]
    if any(each != places[0] for each in places):
        raise ValueError("these evaluations are of other positions; measure them again")
    documents = np.unique([document for document, _ in places[0]], return_inverse=True)[1]
    tokens = np.array(sums[next(iter(sums))]["tokens"], dtype=float)

    def mean(nats: np.ndarray) -> list[float]:
        return [float(nats.sum() / tokens.sum()), *interval_of_some(nats, documents, SEED, tokens)]

    rows: dict[str, dict[str, Any]] = {}
    for name, own in sums.items():
        gain, nll = (np.array(own[key]) for key in ("gain", "nll"))
        rows[name] = {
            "positions": len(gain),
            "documents": int(documents.max()) + 1,
            "gain": mean(gain),
            "nll": mean(nll),
            "helped": float((gain > 0).mean()),
            "of": {key: value for key, value in found[name].items() if key in OF},
        }
        if name != BEFORE and BEFORE in sums:
            before = sums[BEFORE]
            rows[name]["change"] = mean(gain - np.array(before["gain"]))
            rows[name]["nll_change"] = mean(nll - np.array(before["nll"]))
    return rows


def _sums(result: dict[str, Any]) -> dict[str, Any]:
    """Nats of each position's continuation, by what they say."""
    places, gain, nll, tokens = [], [], [], []
    for page in result["pages"]:
        for at in page["positions"]:
            empty = np.array(at["logp_empty"])
            think = np.mean([thought["logp_think"] for thought in at["thoughts"]], axis=0)
            places.append((page["document_id"], at["position"]))
            gain.append(float((think - empty).sum()))
            nll.append(float(-empty.sum()))
            tokens.append(len(empty))
    return {"places": places, "gain": gain, "nll": nll, "tokens": tokens}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, an evaluation a column."""
    first = next(iter(rows.values()))
    lines = [
        f"{first['positions']} positions of {first['documents']} documents.",
        "",
        f"|  | {' | '.join(name if name == BEFORE else f'{name}, after' for name in rows)} |",
        "|" + " --- |" * (len(rows) + 1),
    ]
    for key, title in ROWS.items():
        cells = (_cell(row.get(key)) for row in rows.values())
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.0%}"
    mean, low, high = value
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
