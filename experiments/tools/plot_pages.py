"""Tabulate and draw results/pages.json: whole held-out pages of real text, read with searches where
rules want them.

    python experiments/tools/plot_pages.py

Writes PAGES.md and PAGES.png beside this program.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RULES = {"gate": "#0072b2", "entropy": "#e69f00", "every so many tokens": "#999999"}
HEAD = """\
# Whole pages of real text, with searches

SmolLM2-135M-Instruct after RNTP with search (`runs/tools-opened-0`), held-out pages of Debian's
documentation read from start to end, strict search. A thought may come at every {stride}th token,
calls once, and is judged by the next {horizon} tokens. Bits a byte of the whole page, 95 % interval
over pages. Made by `make tools-search-pages`; every rule and bound in `results/pages.json`.

"""


def main() -> None:
    found = json.loads((HERE / "results/pages.json").read_text(encoding="utf-8"))
    head = HEAD.format(stride=found["stride"], horizon=found["horizon"])
    (HERE / "PAGES.md").write_text(head + table(found), encoding="utf-8")
    draw(found)
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """Markdown of all rows."""
    never = found["rows"][0]["bits_per_byte"]
    lines = [
        f"{found['num_docs']} pages, {found['num_tokens']:,} tokens, thoughts at "
        f"{found['positions']:,} places; without a thought {never:.4f} bits a byte.",
        "",
        "| a thought comes | bound | calls a token | thought tokens a token | computed a token | "
        "bits a byte saved |",
        "|" + " --- |" * 6,
    ]
    for row in found["rows"][1:]:
        low, high = row["saved_ci95"]
        bound = "" if row["bound"] is None else f"{row['bound']:.3g}"
        lines.append(
            f"| {row['rule']} | {bound} | {row['thoughts_per_token']:.4f} | "
            f"{row['thought_tokens_per_token']:.3f} | {row['computed_per_token']:.1f} | "
            f"{row['saved']:+.4f} [{low:+.4f}, {high:+.4f}] |"
        )
    if gate := found["gate"]:
        lines += ["", f"AUC of the gate for “thinking helps here”: {gate['auc']:.2f}."]
    return "\n".join(lines) + "\n"


def draw(found: dict[str, Any]) -> None:
    """Bits a byte saved over calls, a line a rule."""
    figure, panel = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for rule, color in RULES.items():
        rows = [row for row in found["rows"] if row["rule"] == rule]
        rows.sort(key=lambda row: row["thoughts_per_token"])
        calls = [1000 * row["thoughts_per_token"] for row in rows]
        saved = [row["saved"] for row in rows]
        edges = [
            [row["saved"] - row["saved_ci95"][0] for row in rows],
            [row["saved_ci95"][1] - row["saved"] for row in rows],
        ]
        panel.errorbar(calls, saved, edges, fmt="o-", ms=4, capsize=2, color=color, label=rule)
    best = next(row for row in found["rows"] if row["rule"] == "in hindsight")
    at = ([1000 * best["thoughts_per_token"]], [best["saved"]])
    panel.plot(*at, "*", ms=11, color="black", fillstyle="none", label="in hindsight")
    panel.axhline(0, color="black", linewidth=0.8)
    panel.set_xlabel("calls for 1,000 tokens of the page")
    panel.set_ylabel("bits a byte saved")
    panel.set_title(f"{found['num_docs']} held-out pages, 95 % intervals over pages")
    panel.legend(fontsize=8)
    figure.savefig(HERE / "PAGES.png", dpi=100)


if __name__ == "__main__":
    main()
