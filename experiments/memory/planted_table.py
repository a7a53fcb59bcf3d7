"""Tabulate runs on planted memories: experiments/memory/RESULTS.md.

    python experiments/memory/planted_table.py runs/memory-planted-*

Every figure is of the runs' own evaluations before and after training.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.data import Manifest
from rntp.model.tokenizer import load_tokenizer, prefix_ids
from rntp.run.log import read_metrics

RESULTS = Path(__file__).parent / "RESULTS.md"
IDEAL = {"needed": 2.303, "more than fits": 2.998, "changed": 2.303}
FACT = re.compile(r" (\w) (\d)")
TARGETS = """\
Targets: the share of the best memory's gain, as the reader reads it, from below 30 % to 95 % (90 %
of the best choice where more is given than fits); the newest value of a changed fact in 95 % of the
memories; another page's memory gains nothing; at most 0.005 nats a token of harm where nothing is
lost. Made by `make memory`."""


def says_newest(text: str, best: str) -> bool:
    """Whether a memory says of the fact that changed its newest value, and no other. best: the best
    memory, that fact alone."""
    ((letter, newest),) = FACT.findall(best)
    said = {digit for x, digit in FACT.findall(text) if x == letter}
    return said == {newest}


def newest_share(pages: list[dict[str, Any]], manifest: Manifest, prefix: int) -> float:
    """Share of the memories at changed facts that carry the newest value. prefix: tokens that the
    loader puts before a page."""
    number = {name: n for n, name in enumerate(manifest.document_ids)}
    found = []
    for page in pages:
        oracle = manifest.read(number[page["document_id"]]).metadata["labels"]["oracle"]
        for at in page["positions"]:
            if at["class"] == "changed":
                best = oracle[str(at["position"] - prefix)]["thought"]
                found += [says_newest(t["text"], best) for t in at["thoughts"]]
    return sum(found) / len(found)


def facts_of(run: Path) -> dict[str, Any]:
    """What a run's evaluations say, before and after."""
    config = Config.load(run / "config.yaml")
    manifest = Manifest.load(config.data.source)
    steps = [json.loads(p.read_text()) for p in sorted((run / "eval").glob("step_????????.json"))]
    metrics = read_metrics(run)
    prefix = len(prefix_ids(load_tokenizer(config.model.spec)))
    return {
        "seed": config.run.seed,
        "steps": config.run.steps,
        "minutes": sum(row["time/step_s"] for row in metrics) / 60,
        "before": steps[0]["memory"]["by_class"],
        "after": steps[-1]["memory"]["by_class"],
        "newest": [newest_share(steps[n]["pages"], manifest, prefix) for n in (0, -1)],
        "horizon": config.reward.horizon,
    }


def rows(found: list[dict[str, Any]]) -> list[str]:
    """The table, a row for each number and a column for each run."""
    lines = [
        "| | ideal | " + " | ".join(f"seed {run['seed']}" for run in found) + " |",
        "|---|---|" + "---|" * len(found),
    ]

    def row(name: str, ideal: str, cells: list[str]) -> None:
        lines.append(f"| {name} | {ideal} | " + " | ".join(cells) + " |")

    for name, ideal in IDEAL.items():
        for key, label, of in (
            ("of_oracle", "of the best memory's gain", "{:.1%}"),
            ("gain", "gain, nats a continuation", "{:+.3f}"),
        ):
            cells = [
                f"{of.format(run['before'][name][key])} → {of.format(run['after'][name][key])}"
                for run in found
            ]
            row(f"{name}: {label}", f"{ideal:.3f}" if key == "gain" else "", cells)
        for control in ("oracle", "shuffled"):
            label = {"oracle": "the best memory", "shuffled": "another page's"}[control]
            cells = [f"{run['after'][name]['controls'][control]:+.3f}" for run in found]
            row(f"{name}: {label} in its place", "", cells)
    row(
        "changed: the newest value",
        "100 %",
        [f"{run['newest'][0]:.1%} → {run['newest'][1]:.1%}" for run in found],
    )
    for name in ("nothing lost", "idle"):
        cells = [f"{run['after'][name]['gain'] / run['horizon']:+.4f}" for run in found]
        row(f"{name}: gain, nats a token", "0", cells)
    row("minutes of training", "", [f"{run['minutes']:.1f}" for run in found])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = sorted((facts_of(run) for run in arguments.runs), key=lambda run: run["seed"])
    text = "\n".join(["# Planted memories", "", TARGETS, "", *rows(found), ""])
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
