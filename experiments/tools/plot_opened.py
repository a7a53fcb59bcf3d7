"""Draw results/opened.json: gains by seed beside their control, and by how hard the tokens are.

    python experiments/tools/plot_opened.py

Writes OPENED.png beside this program.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ARMS = {
    "learned": "learned query",
    "last_words": "fixed query",
    "other_results": "another document's result",
}
COLORS = ("#0072b2", "#e69f00", "#999999")


def main() -> None:
    runs = json.loads((HERE / "results/opened.json").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for n, ((arm, label), color) in enumerate(zip(ARMS.items(), COLORS, strict=True)):
        means, lows, highs = zip(*(run["after"][arm] for run in runs), strict=True)
        edges = [
            [mean - low for mean, low in zip(means, lows, strict=True)],
            [high - mean for mean, high in zip(means, highs, strict=True)],
        ]
        places = [run["seed"] + 0.16 * (n - 1) for run in runs]
        left.errorbar(places, means, edges, fmt="o", capsize=3, color=color, label=label)
    left.axhline(0, color="black", linewidth=0.8)
    left.set_xticks([run["seed"] for run in runs], [f"seed {run['seed']}" for run in runs])
    left.set_ylabel("gain of thinking, nats a token")
    left.set_title("After training, 96 held-out documents each, 95 % intervals")
    left.set_ylim(top=0.21)  # room for the legend
    left.legend(loc="upper right")
    tenths = range(1, 11)
    for run, color in zip(runs, ("#0072b2", "#56b4e9", "#009e73"), strict=True):
        gains = [row["gain"] for row in run["after"]["deciles"]]
        right.plot(tenths, gains, "o-", color=color, label=f"seed {run['seed']}")
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(tenths)
    right.set_xlabel("tenth of the tokens by loss without a thought, easiest first")
    right.set_ylabel("gain of thinking, nats a token")
    right.set_title("Where it comes from")
    right.legend()
    figure.savefig(HERE / "OPENED.png", dpi=110)


if __name__ == "__main__":
    main()
