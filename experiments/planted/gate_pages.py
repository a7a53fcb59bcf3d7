"""Whole planted pages by the gate: three runs, a gate fitted to each, and every token of 60 pages;
beside it, the three policies after some steps more in which they learn where not to think
(`thought.source: policy_or_none`).

    python experiments/planted/gate_pages.py [--seeds 0,1,2]

Writes results/gate/: seed_N.json, itself_N.json, table.md and plot.png. The same command goes on
after a kill; --table makes table and plot again from what is there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rntp.run.log import provenance_of
from rntp.runtime.files import write_json
from rntp.runtime.provenance import environment

HERE = Path(__file__).parent
OUT = HERE / "results/gate"
PRICE = 0.05  # nats a thought token
PLACES, PERFECT = "where the corpus knows one", "perfect ones there"
UNSEEN = "beyond training"  # a class that held-out pages alone have
ITSELF = "the policy itself"
# A policy whose thoughts do not pay yet would learn to think nowhere, so it begins with one that
# was trained. Of three thoughts one is not drawn. Tokens have the price that the gate is asked at.
STEPS, STEPS_ITSELF = 300, 100
OR_NONE = {
    "thought.source": "policy_or_none",
    "thought.thoughts_per_position": 3,
    "reward.scheme": f"{{net_gain: {{token_cost: {PRICE}}}}}",
    "optim.lr": 7.0e-4,
}
EMPTY: Mapping[str, object] = {}
LINES = {"gate": "#0072b2", "entropy": "#e69f00", "every so many tokens": "#999999"}


def rntp(*arguments: object) -> None:
    """Run the program; its lines go where ours go."""
    subprocess.run([sys.executable, "-m", "rntp", *map(str, arguments)], check=True)


def measure(seed: int, runs: Path) -> None:
    """Train, fit the gate, and read held-out pages from start to end."""
    run, model, out = runs / f"gate-planted-{seed}", runs / f"gate-model-{seed}", _file(seed)
    if out.is_file():
        return
    train(run, seed, STEPS)
    if not model.is_dir():
        rntp("ckpt", "export", run, model)
    # Held-out pages, for training pages do not show what the policy fails at.
    sizes = ("--contexts", 400, "--positions", 96, "--thoughts", 1)
    rntp("gate", run, model, "--unseen", *sizes, "--price", PRICE)
    read(run, out, "--gate", model, "--price", PRICE, "--seen")


def measure_itself(seed: int, runs: Path) -> None:
    """The same pages by the policy after it has learnt where not to think."""
    run, out = runs / f"gate-itself-{seed}", _file(seed, "itself")
    if not out.is_file():
        train(run, seed, STEPS_ITSELF, {"model.spec": runs / f"gate-model-{seed}"} | OR_NONE)
        read(run, out)


def train(run: Path, seed: int, steps: int, more: Mapping[str, object] = EMPTY) -> None:
    """Train the policy, where that has not been done."""
    if (run / f"eval/step_{steps:08d}.json").is_file():
        return
    sets = {"run.seed": seed, "run.steps": steps, "evaluation.docs": 200, **more}
    pairs = (part for key, value in sets.items() for part in ("--set", f"{key}={value}"))
    rntp("train", HERE / "config.yaml", "--run-dir", run, *pairs)


def read(run: Path, out: Path, *arguments: object) -> None:
    """Read whole pages, a thought at every token."""
    rntp("eval", run, "--pages", 60, "--stride", 1, *arguments, "--out", out)
    made = {"trained": provenance_of(run), "measured": environment("cpu")["git"]}
    write_json(out, {**json.loads(out.read_text(encoding="utf-8")), **made})


def _file(seed: int, name: str = "seed") -> Path:
    return OUT / f"{name}_{seed}.json"


def row_of(found: dict[str, Any], rule: str, number: int = -1) -> dict[str, Any]:
    """A rule's row; of several the last one, which for the gate is the one at the price."""
    return [row for row in found["rows"] if row["rule"] == rule][number]


def compared(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of the table."""
    gate = row_of(found, "gate")
    spent = gate["thought_tokens_per_token"]
    entropy = [row for row in found["rows"] if row["rule"] == "entropy"]
    nearest = min(entropy, key=lambda row: abs(row["thought_tokens_per_token"] - spent))
    return [
        (f"gate, {PRICE} nats a token", gate),
        ("… its thoughts left in the page", row_of(found, "gate, thoughts seen")),
        ("entropy, nearest in tokens", nearest),
        ("thoughts where the corpus knows one", row_of(found, PLACES)),
        ("perfect thoughts there", row_of(found, PERFECT)),
    ]


def of_perfect(found: dict[str, Any], row: dict[str, Any]) -> float:
    """Share of what perfect thoughts gain at tokens of the classes that training pages have."""
    nats = [
        sum(c["tokens"] * c["gain"] for name, c in r["by_class"].items() if name != UNSEEN)
        for r in (row, row_of(found, PERFECT))
    ]
    return nats[0] / nats[1]


def table(found: dict[int, dict[str, Any]], itself: dict[int, dict[str, Any]]) -> str:
    """Markdown of all seeds. itself: of the runs whose policy decides."""
    lines = [
        "| seed | a thought comes | thought tokens a token | of the perfect ones' | bits a byte "
        "saved | of what perfect ones save | … but for tokens beyond training |",
        "|" + " --- |" * 7,
    ]
    for seed, facts in found.items():
        rows = [(name, row, facts) for name, row in compared(facts)]
        if own := itself.get(seed):
            rows.insert(2, (f"{ITSELF}, {STEPS_ITSELF} steps later", row_of(own, ITSELF), own))
        for name, row, of in rows:
            best = row_of(of, PERFECT)
            low, high = (_signed(x) for x in row["saved_ci95"])
            tokens, most = row["thought_tokens_per_token"], best["thought_tokens_per_token"]
            lines.append(
                f"| {seed} | {name} | {tokens:.3f} | {tokens / most:.2f} | "
                f"{_signed(row['saved'])} [{low}, {high}] | {row['saved'] / best['saved']:.0%} | "
                f"{of_perfect(of, row):.0%} |"
            )
    lines += ["", "Gain by class with the gate at that price, nats a token of the class:", ""]
    lines += by_class(found, "gate")
    if itself:
        lines += ["", "… and where the policy itself decides:", "", *by_class(itself, ITSELF)]
    lines.append("")
    lines.append("| seed | AUC, the corpus knows one here | it helped by 0.05 nats | … at all |")
    lines.append("|" + " --- |" * 4)
    for seed, facts in found.items():
        gate = facts["gate"]
        cells = (f"{gate[key]:.3f}" for key in ("auc_known", "auc_much", "auc"))
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def by_class(found: dict[int, dict[str, Any]], rule: str) -> list[str]:
    """Lines of what a rule gains at each class."""
    names = list(row_of(next(iter(found.values())), rule)["by_class"])
    lines = [f"| seed | {' | '.join(names)} |", "|" + " --- |" * (len(names) + 1)]
    for seed, facts in found.items():
        gains = (_signed(row_of(facts, rule)["by_class"][name]["gain"]) for name in names)
        lines.append(f"| {seed} | {' | '.join(gains)} |")
    return lines


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def plot(found: dict[int, dict[str, Any]]) -> None:
    """What rules save over thought tokens, a column a seed: on whole pages, and what of that is at
    tokens of the classes that training pages have."""
    measures = {
        "bits a byte saved on whole pages": lambda facts, row: row["saved"],
        "of what perfect thoughts gain,\nbut for tokens beyond training": of_perfect,
    }
    figure, panels = plt.subplots(
        2,
        len(found),
        figsize=(4.2 * len(found), 7),
        layout="constrained",
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for line, (label, measure_of) in zip(panels, measures.items(), strict=True):
        for panel, facts in zip(line, found.values(), strict=True):
            _draw(panel, facts, measure_of)
        line[0].set_ylabel(label)
    for top, bottom, seed in zip(*panels, found, strict=True):
        top.set_title(f"seed {seed}")
        bottom.set_xlabel("thought tokens a token of the page")
    panels[0][0].legend(fontsize=8)
    figure.savefig(OUT / "plot.png", dpi=100)


def _draw(panel: Any, facts: dict[str, Any], measure_of: Callable[..., float]) -> None:
    for rule, color in LINES.items():
        rows = [row for row in facts["rows"] if row["rule"] == rule]
        rows.sort(key=lambda row: row["thought_tokens_per_token"])
        spent = [0.0, *(row["thought_tokens_per_token"] for row in rows)]
        values = [0.0, *(measure_of(facts, row) for row in rows)]
        panel.plot(spent, values, "o-", ms=4, color=color, label=rule)
    for rule, mark in ((PLACES, "s"), (PERFECT, "*")):
        row = row_of(facts, rule)
        at = ([row["thought_tokens_per_token"]], [measure_of(facts, row)])
        panel.plot(*at, mark, ms=10, color="black", fillstyle="none", label=rule)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xscale("symlog", linthresh=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--table", action="store_true", help="from what is there")
    arguments = parser.parse_args()
    seeds = [int(part) for part in arguments.seeds.split(",")]
    OUT.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for seed in seeds:
            measure(seed, arguments.runs)
        for seed in seeds:
            measure_itself(seed, arguments.runs)
    found, itself = (
        {
            seed: json.loads(_file(seed, name).read_text(encoding="utf-8"))
            for seed in seeds
            if _file(seed, name).is_file()
        }
        for name in ("seed", "itself")
    )
    text = table(found, itself)
    (OUT / "table.md").write_text(text, encoding="utf-8")
    plot(found)
    print(text)


if __name__ == "__main__":
    main()
