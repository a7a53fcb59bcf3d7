"""Tabulate searches on real text, arm by arm: experiments/tools/SEARCH.md.

    python experiments/tools/search_table.py runs/tools-search-0 runs/tools-search-1 …

Gains are over the same model without a thought, nats a token of the continuation, with the 95 %
interval over documents; of the runs' own evaluations before and after training. The plain runs,
next-token training alone from the same start, are compared with the searches of their seed,
position by position.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from rntp.config import Config
from rntp.evaluation.resampling import interval_of_some

RESULTS = Path(__file__).parent / "SEARCH.md"
ARMS = {
    "last_words": "fixed query, the last 12 words",
    "rare_words": "fixed query, 5 rare words nearby",
    "others_words": "another document's query",
    "other_results": "the learned query with another's result",
    "no_results": "the learned query, its result left out",
}
HEAD = """\
# Search on real text

SmolLM2-135M-Instruct on Debian's documentation; gain over the same model without a thought, nats a
token of the 16 behind the position, held-out documents, strict search, 95 % interval over
documents. All of the page before the position is read, with a thought and without. Made by
`make tools-search`."""


def gains_of(pages: list[dict[str, Any]], arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Gain at every position that has the arm, nats a token, and its document. arm: a control, or
    "thoughts" for the mean of those that were drawn."""
    gains, documents = [], []
    for number, page in enumerate(pages):
        for at in page["positions"]:
            if arm == "thoughts":
                with_it = [np.mean(t["logp_think"]) for t in at["thoughts"]]
            elif arm in at.get("controls", {}):
                with_it = [np.mean(at["controls"][arm])]
            else:
                continue
            gains.append(float(np.mean(with_it) - np.mean(at["logp_empty"])))
            documents.append(number)
    return np.array(gains), np.array(documents)


def cell(gains: np.ndarray, documents: np.ndarray, seed: int) -> str:
    """A mean with its interval."""
    if not len(gains):
        return "no result"
    low, high = interval_of_some(gains, documents, seed)
    return f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def over_fixed(pages: list[dict[str, Any]], seed: int) -> str:
    """Gain of the learned query over the fixed one, position by position."""
    learned, documents = gains_of(pages, "thoughts")
    fixed, _ = gains_of(pages, "last_words")
    return cell(learned - fixed, documents, seed) if len(fixed) == len(learned) else "not measured"


def losses_of(pages: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Loss without a thought at every position, nats a token, by document and position."""
    return {
        (page["document_id"], at["position"]): -float(np.mean(at["logp_empty"]))
        for page in pages
        for at in page["positions"]
    }


def over_plain(pages: list[dict[str, Any]], plain: list[dict[str, Any]], seed: int) -> str:
    """Loss without a thought over that of plain training at the same positions."""
    own, others = losses_of(pages), losses_of(plain)
    if own.keys() != others.keys():
        raise SystemExit("the plain run was evaluated at other positions; give both the same seed")
    documents = sorted({document for document, _ in own})
    differences = np.array([own[at] - others[at] for at in own])
    return cell(differences, np.array([documents.index(d) for d, _ in own]), seed)


def evaluated(run: Path) -> list[tuple[int, Path]]:
    """Seed and file of a run's evaluations before and after training."""
    files = sorted((run / "eval").glob("step_????????.json"))
    seed = Config.load(run / "config.yaml").run.seed
    return [(seed, files[0]), (seed, files[-1])]


def table(runs: list[Path], plain: dict[int, list[dict[str, Any]]]) -> list[str]:
    """A row for each arm, a column for each run before and after. plain: by seed, what the plain
    run says of the held-out pages after training."""
    columns = []
    for run in runs:
        for when, (seed, path) in zip(("before", "after"), evaluated(run), strict=True):
            columns.append((f"seed {seed}, {when}", seed, path))
    found = [(name, seed, json.loads(path.read_text())) for name, seed, path in columns]

    def row(name: str, cells: list[str]) -> str:
        return f"| {name} | " + " | ".join(cells) + " |"

    lines = [row("", [name for name, _, _ in found]), row("---", ["---"] * len(found))]
    lines.append(row("loss without a thought", [f"{r['nll/no_think']:.4f}" for *_, r in found]))
    cells = [over_plain(r["pages"], plain[s], s) if s in plain else "" for _, s, r in found]
    lines.append(row("… over plain training", cells))
    for arm, label in {"thoughts": "**learned query**", **ARMS}.items():
        cells = [cell(*gains_of(r["pages"], arm), seed) for _, seed, r in found]
        lines.append(row(label, cells))
    cells = [over_fixed(r["pages"], seed) for _, seed, r in found]
    lines.append(row("learned over fixed", cells))
    for key, label in (
        ("calls_per_thought", "calls a position"),
        ("precision", "share of results with a gain"),
    ):
        cells = [f"{r.get('tools', {}).get(key) or 0:.3f}" for *_, r in found]
        lines.append(row(label, cells))
    lines += ["", "Queries after training, of the last run:", ""]
    shown = [
        (call["arguments"], float(np.mean(t["logp_think"]) - np.mean(at["logp_empty"])))
        for page in found[-1][2]["pages"]
        for at in page["positions"]
        for t in at["thoughts"]
        for call in t.get("calls", [])
        if not call["failure"]
    ]
    for arguments, gain in sorted(shown, key=lambda pair: -pair[1])[:5]:
        lines.append(f"* {gain:+.3f} `{' '.join(arguments.split()).replace('`', '')}`")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--plain", type=Path, nargs="*", default=[], help="plain runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    after = [evaluated(run)[-1] for run in arguments.plain]
    plain = {seed: json.loads(path.read_text())["pages"] for seed, path in after}
    text = "\n".join([HEAD, "", *table(arguments.runs, plain), ""])
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
