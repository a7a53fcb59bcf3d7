"""What RNTP is good for afterwards: arms through the identical RLVR, before and after.

    python experiments/rlvr/compare.py --seeds 0 1 2        # or make rlvr; resumes

Every arm starts from the planted base. All but `base` are trained on the planted pages first, each
for about the FLOPs of RNTP (sizes of experiments/methods/planted.yaml), and then all go through
rlvr.yaml. The last arm gives the base in RLVR what the others have spent before it. A ranking
before RLVR can reverse after it (2608.23256), so the table has both.

Mixed SFT trains on pages and on the thoughts that helped in the RNTP arm of the same seed, which it
is given: what those cost is not counted.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rntp.ablate.matching import step_cost
from rntp.config import Config
from rntp.run.log import provenance_of, read_metrics
from rntp.runtime.files import write_json

METHODS = Path("experiments/methods")
RLVR = Path("experiments/rlvr/rlvr.yaml")
# What experiments/methods/planted.yaml sets for every method.
COMMON = {
    "run.steps": 20,
    "data.source": "build/planted",
    "evaluation.docs": 0,
    "model.spec": "experiments/planted/base",
    "model.dtype": "float32",
    "data.context_tokens": 192,
    "data.docs_per_step": 16,
    "data.heldout_fraction": 0.1,
    "placement.policy": "oracle",
    "placement.positions_per_doc": 2,
    "placement.min_prefix_tokens": 16,
    "thought.thoughts_per_position": 8,
    "thought.thought_tokens": 8,
    "reward.horizon": 2,
    "optim.lr": 0.0015,
    "optim.schedule": "constant",
    "optim.warmup_steps": 3,
    "rollout.docs_per_batch": 16,
    "checkpoint.every_steps": 1000,
    "parallel.tokens_per_microbatch": 6000,
}
PLAIN = {"data.docs_per_step": 37, "placement.policy": "random"} | {
    "thought.thoughts_per_position": 0
}
FIRST: dict[str, tuple[str, dict[str, Any]]] = {
    "CPT": ("cpt.yaml", PLAIN),
    "RNTP": ("rntp.yaml", {}),
    "mixed SFT": ("mixed_sft.yaml", PLAIN | {"data.context_tokens": 208}),
}
LONGER = "base, RLVR for all FLOPs"
RANDOM = "base, random reward"
ARMS = ("base", *FIRST, LONGER, RANDOM)


def run(*arguments: str) -> None:
    """Run a command of rntp; ends the comparison where it fails."""
    found = subprocess.run([sys.executable, "-m", "rntp", *arguments], check=False)
    if found.returncode:
        sys.exit(found.returncode)


def sets(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def first_stage(arm: str, seed: int, folder: Path) -> str:
    """Train an arm before RLVR, once, and name its weights."""
    if arm not in FIRST:
        return str(COMMON["model.spec"])
    file, own = FIRST[arm]
    there = folder / "model"
    if not (there / "config.json").is_file():
        values = {**COMMON, **own, "run.seed": seed}
        if arm == "mixed SFT":
            values["data.source"] = written(folder.with_name(f"RNTP-{seed}") / "first", folder)
        run("train", str(METHODS / file), "--run-dir", str(folder / "first"), *sets(values))
        run("ckpt", "export", str(folder / "first"), str(there))
    return str(there)


def written(run_dir: Path, folder: Path) -> str:
    """Write the thoughts that helped in a run into its pages, once; the corpus."""
    corpus = folder / "pages"
    if not (corpus / "manifest.json").is_file():
        what = ("--out", str(corpus), "--shards", "--mixed", "--min-gain", "0.2")
        run("traces", str(run_dir), *what)
    return str(corpus)


def second_stage(arm: str, seed: int, spec: str, folder: Path) -> Path:
    """Put an arm through RLVR, once; the run folder."""
    own: dict[str, Any] = {"run.seed": seed, "model.spec": spec}
    if arm == LONGER:
        own["run.steps"] = longer_steps()
    if arm == RANDOM:
        own["reward.scheme"] = "random"
    run("train", str(RLVR), "--run-dir", str(folder / "rlvr"), *sets(own))
    return folder / "rlvr"


def longer_steps() -> int:
    """Steps of RLVR that cost what RNTP and then RLVR do, by the estimate of a step."""
    file, own = FIRST["RNTP"]
    overrides = [f"{name}={value}" for name, value in {**COMMON, **own}.items()]
    before = Config.load(METHODS / file, overrides)
    after = Config.load(RLVR)
    spent = step_cost("flop", before) * before.run.steps
    return after.run.steps + round(spent / step_cost("flop", after))


def measured(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """The row of a finished arm: pass rates before and after RLVR, and what was spent."""
    done = folder / "rlvr"
    row: dict[str, Any] = {"arm": arm, "seed": seed}
    steps = Config.load(done / "config.yaml").run.steps
    for name, step in (("before", 0), ("after", steps)):
        result = json.loads((done / "eval" / f"step_{step:08d}.json").read_text())
        tasks = result["tasks"]
        row[name] = {f"pass@{at['k']}": at["pass"] for at in tasks["pass_at"]}
        row[name] |= {key: tasks[key] for key in ("closed", "thought_tokens", "num_tasks")}
        row[name]["gain"] = result["gain/mean"]
        row[name]["by task"] = [
            sum(t["score"] >= 1 for t in page["positions"][0]["thoughts"])
            for page in result["pages"]
        ]
    stages = [folder / "first", done] if arm in FIRST else [done]
    spent = [sum(m["compute/tflop"] for m in read_metrics(stage)) for stage in stages]
    row["provenance"] = [provenance_of(stage) for stage in stages]
    return row | {"tflop before": sum(spent[:-1]), "tflop of RLVR": spent[-1], "steps": steps}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds with the lowest and the highest, and the rank of each arm."""

    def values(arm: str, when: str, what: str) -> list[float]:
        return [row[when][what] for row in rows if row["arm"] == arm]

    def cell(found: Sequence[float]) -> str:
        return f"{np.mean(found):.1%} [{min(found):.1%}, {max(found):.1%}]"

    arms = [arm for arm in ARMS if any(row["arm"] == arm for row in rows)]
    ranks = {
        when: sorted(arms, key=lambda arm: -np.mean(values(arm, when, "pass@1")))
        for when in ("before", "after")
    }
    head = [
        "arm", "seeds", "pass@1 before", "pass@8 before", "pass@1 after", "pass@8 after",
        "rank before", "rank after", "TFLOP before", "TFLOP of RLVR",
    ]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        cells = [arm, str(len(own))]
        for when in ("before", "after"):
            cells += [cell(values(arm, when, what)) for what in ("pass@1", "pass@8")]
        cells += [str(ranks[when].index(arm) + 1) for when in ("before", "after")]
        cells += [f"{np.mean([row[k] for row in own]):.2f}" for k in head_keys()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def head_keys() -> tuple[str, str]:
    return "tflop before", "tflop of RLVR"


def told(rows: Sequence[dict[str, Any]]) -> str:
    """The table and what differs, as Markdown."""
    lines = [table(rows)]
    for reference in ("base", LONGER):
        lines += ["", f"pass@1 after RLVR, less that of “{reference}”:", ""]
        lines += paired(rows, reference)
    return "\n".join(lines) + "\n"


def paired(rows: Sequence[dict[str, Any]], reference: str = "base") -> list[str]:
    """Differences in pass@1 after RLVR to the reference, with intervals over tasks of all seeds."""
    lines, generator = [], np.random.default_rng(0)
    known = {(row["arm"], row["seed"]): row for row in rows}
    for arm in ARMS:
        pairs = [
            (known[arm, seed], known[reference, seed])
            for name, seed in known
            if name == arm != reference and (reference, seed) in known
        ]
        if not pairs:
            continue
        gaps = np.concatenate(
            [
                (np.array(a["after"]["by task"]) - np.array(b["after"]["by task"])) / 8
                for a, b in pairs
            ]
        )
        means = generator.choice(gaps, size=(2000, len(gaps))).mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        lines.append(f"- {arm}: {gaps.mean():+.1%} [{low:+.1%}, {high:+.1%}], {len(pairs)} seeds")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/rlvr"))
    parser.add_argument("--out", type=Path, default=Path("experiments/rlvr/results"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for arm in arguments.arms:
            name = arm.replace(",", "").replace(" ", "-")
            folder = arguments.runs / f"{name}-{seed}"
            second_stage(arm, seed, first_stage(arm, seed, folder), folder)
            rows.append(measured(arm, seed, folder))
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_json(arguments.out / "planted.json", rows)
            (arguments.out / "planted.md").write_text(told(rows), encoding="utf-8")
            print(told(rows), flush=True)


if __name__ == "__main__":
    main()
