"""Thoughts as data, twice over: what does a fresh base keep of the last one's thoughts?

    python experiments/generations/run.py --seeds 0 1 2        # or make generations; resumes

A generation: a model thinks on pages (draw.yaml), its thoughts are written into their pages, and
the planted base, as it was, learns from these pages by next-token loss alone (learn.yaml). The
next generation begins with that model. Arms differ in how thoughts are drawn and which are kept.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rntp.run.log import provenance_of
from rntp.runtime.files import write_json, write_text_atomic

HERE = Path(__file__).parent
# No weight moves by it: float32 weights are some 1e-2, and AdamW's step is the learning rate.
NO_LEARNING = 1e-14


@dataclass(frozen=True)
class Arm:
    """learns: RNTP while it draws. kept: arguments of `rntp traces`."""

    learns: bool
    kept: tuple[str, ...]


BEST = ("--min-gain", "0.2")
ALL = ("--min-gain", "-1000", "--per-position", "8", "--unclosed")
ARMS = {
    "RNTP, best thoughts": Arm(learns=True, kept=BEST),
    "drawn, best thoughts": Arm(learns=False, kept=BEST),
    "drawn, all thoughts": Arm(learns=False, kept=ALL),
}
PLAIN = "pages alone"


def rntp(*arguments: object) -> None:
    """Run a command of rntp; ends the experiment where it fails."""
    done = subprocess.run([sys.executable, "-m", "rntp", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def train(config: str, folder: Path, **values: object) -> dict[str, Any]:
    """Train once, and read the evaluation at the end."""
    steps = 20
    done = folder / "eval" / f"step_{steps:08d}.json"
    if not done.is_file():
        sets = {"run.steps": steps} | {k.replace("__", "."): v for k, v in values.items()}
        told = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        rntp("train", HERE / config, "--run-dir", folder, *told)
    return json.loads(done.read_text())


def generation(arm: Arm, seed: int, spec: str, folder: Path) -> dict[str, Any]:
    """Draw, write, learn; the row without its names. The model is exported to folder/model."""
    own = {} if arm.learns else {"optim__lr": NO_LEARNING}
    drawn = train("draw.yaml", folder / "draw", run__seed=seed, model__spec=spec, **own)
    pages = folder / "pages"
    if not (pages / "manifest.json").is_file():
        what = ("--out", pages, "--shards", "--mixed", *arm.kept)
        rntp("traces", folder / "draw", *what)
    learnt = train("learn.yaml", folder / "learn", run__seed=seed, data__source=pages)
    if not (folder / "model" / "config.json").is_file():
        rntp("ckpt", "export", folder / "learn", folder / "model")
    return {
        # As many plain pages are mixed in.
        "written": json.loads((pages / "traces.json").read_text())["plain_pages"],
        "teacher": measured(drawn),
        "learnt": measured(learnt),
        "provenance": provenance_of(folder / "draw") | {"learnt": provenance_of(folder / "learn")},
    }


def measured(result: dict[str, Any]) -> dict[str, float]:
    """What an evaluation says of gain, of pages without thoughts, and of diversity."""
    thinkable, thoughts = result["classes"]["thinkable"], result["thoughts"]
    return {
        "gain": thinkable["gain"],
        "oracle_fraction": thinkable["oracle_fraction"],
        "solved": thinkable["solved"],
        "shuffled": thinkable["controls"]["shuffled"]["gain"],
        "no_think": result["reading"]["nll"],
        "distinct_2": thoughts["distinct"]["2"],
        "closed": thoughts["closed_frac"],
        "tokens": result["thought/tokens_mean"],
        **differing(result["pages"]),
    }


def differing(pages: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of a position's thoughts that differ from each other, and of all texts in the whole."""
    groups = [
        [thought["text"] for thought in position["thoughts"]]
        for page in pages
        for position in page["positions"]
    ]
    every = [text for group in groups for text in group]
    return {
        "differ_in_group": mean(len(set(group)) / len(group) for group in groups),
        "texts": len(set(every)) / len(every),
    }


COLUMNS = {
    "gain, nats": ("gain", "+.3f"),
    "of oracle": ("oracle_fraction", ".0%"),
    "solved": ("solved", ".2f"),
    "another's thought": ("shuffled", "+.2f"),
    "pages, no-think": ("no_think", ".4f"),
    "thought, tokens": ("tokens", ".1f"),
    "differ in a group": ("differ_in_group", ".0%"),
    "distinct 2-grams": ("distinct_2", ".2f"),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with the lowest and the highest."""

    def cell(found: Sequence[float], form: str) -> str:
        span = "" if len(found) == 1 else f" [{min(found):{form}}, {max(found):{form}}]"
        return f"{mean(found):{form}}{span}"

    lines = [["arm", "generation", "seeds", "thoughts written", "gain of who drew them", *COLUMNS]]
    for name, number in dict.fromkeys((row["arm"], row["generation"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["generation"]) == (name, number)]
        written = cell([row["written"] for row in own], ".0f") if number else "–"
        teachers = [row["teacher"]["gain"] for row in own if row["teacher"]]
        cells = [name, str(number or "–"), str(len(own)), written]
        cells.append(cell(teachers, "+.3f") if teachers else "–")
        cells += [cell([row["learnt"][key] for row in own], f) for key, f in COLUMNS.values()]
        lines.append(cells)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--generations", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/generations"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        plain = train(
            "learn.yaml",
            arguments.runs / f"pages-{seed}",
            run__seed=seed,
            data__source="build/planted",
        )
        row = {"arm": PLAIN, "seed": seed, "generation": 0, "teacher": None}
        rows.append(row | {"learnt": measured(plain)})
        for name, arm in ARMS.items():
            spec = "experiments/planted/base"
            for number in range(1, arguments.generations + 1):
                folder = arguments.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
                there = folder / str(number)
                found = generation(arm, seed, spec, there)
                rows.append({"arm": name, "seed": seed, "generation": number, **found})
                spec = str(there / "model")
                write_json(arguments.out / "table.json", rows)
                write_text_atomic(arguments.out / "table.md", table(rows) + "\n")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
