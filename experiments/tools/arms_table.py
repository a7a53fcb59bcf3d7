"""Tabulate thoughts that call on real text, arm by arm: OPENED.md, SEARCH.md and DOCTEST.md, and
the gains of all positions with their provenance in results/opened.json and so on.

    python experiments/tools/arms_table.py search runs/tools-search-0 runs/tools-search-1 …

Gains are over the same model without a thought, nats a token of the continuation, with the 95 %
interval over documents; of the runs' own evaluations before and after training. The plain runs,
next-token training alone from the same start, are compared with the others of their seed, position
by position.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rntp.config import Config
from rntp.evaluation.resampling import interval_of_some

Page = dict[str, Any]
At = dict[str, Any]
_END = re.compile(r"\n\s*(?:\n|>>>)")


def all_tokens(page: Page, at: At) -> int:
    """Count every token of the continuation."""
    return len(at["logp_empty"])


def output_tokens(page: Page, at: At) -> int:
    """Count the tokens of the continuation that are of the output which begins there: it ends
    before an empty line and before a prompt. All of them at other places."""
    most, place = len(at["logp_empty"]), at["position"]
    tokens = page["tokens"][place : place + most]
    end = _END.search("".join(tokens))
    if end is None or not at.get("class", "").startswith("output"):
        return most
    ends = np.cumsum([len(token) for token in tokens])
    return int(np.searchsorted(ends, end.start())) + 1


@dataclass(frozen=True)
class Experiment:
    """What is told of an experiment.

    learned: what the drawn thoughts are called. fixed: the control that they have to beat. arms:
    controls and what they are called. groups: beginnings of the classes of positions that get a
    table each, with their headings. unit: the document of a page that intervals are over. counted:
    how many tokens of a position's continuation count.
    """

    results: str
    head: str
    learned: str
    fixed: str
    arms: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    unit: Callable[[str], str] = str
    counted: Callable[[Page, At], int] = all_tokens


EXPERIMENTS = {
    "search": Experiment(
        "SEARCH.md",
        """\
# Search on real text

SmolLM2-135M-Instruct on Debian's documentation; gain over the same model without a thought, nats a
token of the 16 behind the position, held-out documents, strict search, 95 % interval over
documents. All of the page before the position is read, with a thought and without. Made by
`make tools-search`.""",
        "query",
        "last_words",
        {
            "last_words": "fixed query, the last 12 words",
            "rare_words": "fixed query, 5 rare words nearby",
            "others_words": "another document's query",
            "other_results": "the learned query with another's result",
            "no_results": "the learned query, its result left out",
        },
    ),
    "opened": Experiment(
        "OPENED.md",
        """\
# Search on real text, calls begun for the policy

SmolLM2-135M-Instruct on Debian's documentation; gain over the same model without a thought, nats a
token of the 16 behind the position, held-out documents, strict search, 95 % interval over
documents. All of the page before the position is read, with a thought and without; predictions of
both are mixed, but in the row that says so. Every query has the 12 words before the position; the
fixed one has nothing else. Made by `make tools-search`.""",
        "query",
        "last_words",
        {
            "alone": "the learned query, its prediction not mixed",
            "last_words": "fixed query, the last 12 words",
            "other_results": "the learned query with another's result",
        },
    ),
    "doctest": Experiment(
        "DOCTEST.md",
        """\
# Outputs of interactive examples

SmolLM2-135M-Instruct on the documentation of Python and Django, pieces of 256 tokens; gain over the
same model without a thought, nats a token of the output, of its first 8 tokens at most (at other
places of the 8 behind the position), held-out pages, 95 % interval over pages. All of the piece
before the position is read, with a thought and without. Made by `make tools-doctest`.""",
        "call",
        "expression",
        {
            "expression": "fixed call, the session so far",
            "other_results": "the learned call with another's result",
            "no_results": "the learned call, its result left out",
        },
        {
            "output": "Outputs",
            "output, computed": "Outputs that a call by rule gives to the letter",
            "output, not computed": "Outputs that it does not give",
            "other": "Other places",
        },
        unit=lambda document_id: document_id.rsplit("-", 2)[0],  # pieces of one page are alike
        counted=output_tokens,
    ),
}


@dataclass(frozen=True)
class Sums:
    """Nats at positions, the tokens that they are of, and the unit of each."""

    nats: np.ndarray
    tokens: np.ndarray
    units: np.ndarray

    def over(self, other: "Sums") -> "Sums":
        """The difference, position by position."""
        return Sums(self.nats - other.nats, self.tokens, self.units)

    def mean(self, seed: int) -> tuple[float, float, float] | None:
        """The mean with its interval; None of no position."""
        if not len(self.nats):
            return None
        low, high = interval_of_some(self.nats, self.units, seed, self.tokens)
        return float(self.nats.sum() / self.tokens.sum()), low, high

    def cell(self, seed: int) -> str:
        """The same as text."""
        found = self.mean(seed)
        return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*found) if found else "no result"


@dataclass(frozen=True)
class Column:
    """An evaluation: its heading, the run's seed, and positions with their pages."""

    name: str
    seed: int
    pages: list[Page]

    def positions(self, group: str) -> Iterator[tuple[Page, At]]:
        """Positions of a class, or of all."""
        for page in self.pages:
            for at in page["positions"]:
                name = at.get("class", "")
                if name == group or group in ("", name.partition(",")[0]):
                    yield page, at


def sums_of(
    experiment: Experiment,
    column: Column,
    group: str,
    value: Callable[[At], np.ndarray | None],
) -> Sums:
    """Sums of a value at each position of a group that has it. value: nats by token of the
    continuation."""
    rows = []
    for page, at in column.positions(group):
        nats, count = value(at), experiment.counted(page, at)
        if nats is not None:
            rows.append((nats[:count].sum(), count, experiment.unit(page["document_id"])))
    nats_P, tokens_P, names = zip(*rows, strict=True) if rows else ((), (), ())
    units = np.unique(np.array(names, dtype=str), return_inverse=True)[1]
    return Sums(np.array(nats_P), np.array(tokens_P), units)


def gain(arm: str) -> Callable[[At], np.ndarray | None]:
    """Gain by token at a position. arm: a control, or "thoughts" for the mean of those drawn, or
    "alone" for that of their predictions where these are mixed."""

    def of(at: At) -> np.ndarray | None:
        if arm == "thoughts":
            with_it = np.mean([t["logp_think"] for t in at["thoughts"]], axis=0)
        elif arm == "alone":
            with_it = np.mean([t["logp_alone"] for t in at["thoughts"]], axis=0)
        elif arm in at.get("controls", {}):
            with_it = np.array(at["controls"][arm])
        else:
            return None
        return with_it - np.array(at["logp_empty"])

    return of


def loss(at: At) -> np.ndarray:
    """Loss by token without a thought."""
    return -np.array(at["logp_empty"])


def over_plain(experiment: Experiment, column: Column, group: str, plain: list[Page]) -> Sums:
    """Loss without a thought over that of plain training at the same positions."""
    other = Column("", column.seed, plain)
    own, others = (
        [(page["document_id"], at["position"]) for page, at in c.positions(group)]
        for c in (column, other)
    )
    if own != others:
        raise SystemExit("the plain run was evaluated at other positions; give both the same seed")
    mine = sums_of(experiment, column, group, loss)
    return mine.over(sums_of(experiment, other, group, loss))


def results(run: Path) -> list[dict[str, Any]]:
    """A run's evaluations before and after training."""
    files = sorted((run / "eval").glob("step_????????.json"))
    return [json.loads(path.read_text()) for path in (files[0], files[-1])]


def evaluated(run: Path) -> list[tuple[int, list[Page]]]:
    """Seed and pages of a run's evaluations before and after training."""
    seed = Config.load(run / "config.yaml").run.seed
    return [(seed, found["pages"]) for found in results(run)]


def table(experiment: Experiment, runs: list[Path], plain: Mapping[int, list[Page]]) -> list[str]:
    """A table for each group: a row for each arm, a column for each run before and after. plain: by
    seed, what the plain run says of the held-out pages after training."""
    columns = [
        Column(f"seed {seed}, {when}", seed, pages)
        for run in runs
        for when, (seed, pages) in zip(("before", "after"), evaluated(run), strict=True)
    ]
    lines = []
    for group, heading in experiment.groups.items():
        lines += [f"## {heading}", ""] * bool(heading)
        lines += [*_group(experiment, columns, group, plain), ""]
    (first, *_) = experiment.groups
    lines += ["What gained most after training, of the last run:", ""]
    return lines + _shown(columns[-1], first)


def _group(
    experiment: Experiment, columns: list[Column], group: str, plain: Mapping[int, list[Page]]
) -> list[str]:
    lines = []

    def row(name: str, cell: Callable[[Column], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(map(cell, columns)) + " |")

    def sums(column: Column, arm: str) -> Sums:
        return sums_of(experiment, column, group, gain(arm))

    def over(column: Column, arm: str) -> str:
        learned, other = sums(column, "thoughts"), sums(column, arm)
        whole = len(learned.nats) == len(other.nats)
        return learned.over(other).cell(column.seed) if whole else "not at all positions"

    def mean_loss(column: Column) -> str:
        found = sums_of(experiment, column, group, loss)
        return f"{found.nats.sum() / found.tokens.sum():.4f}"

    row("", lambda column: column.name)
    row("---", lambda column: "---")
    row("positions", lambda column: str(len(list(column.positions(group)))))
    row("loss without a thought", mean_loss)
    row(
        "… over plain training",
        lambda c: (
            over_plain(experiment, c, group, plain[c.seed]).cell(c.seed) if c.seed in plain else ""
        ),
    )
    for arm, label in {"thoughts": f"**learned {experiment.learned}**", **experiment.arms}.items():
        row(label, lambda column, arm=arm: sums(column, arm).cell(column.seed))
    row("learned over fixed", lambda column: over(column, experiment.fixed))
    row("learned over another's result", lambda column: over(column, "other_results"))
    row("calls a position", lambda column: f"{_calls(column, group)[0]:.3f}")
    row("share of results with a gain", lambda column: f"{_calls(column, group)[1]:.3f}")
    return lines


def summary(experiment: Experiment, run: Path, plain: Mapping[int, list[Page]]) -> dict[str, Any]:
    """What a run says of all positions, before and after training. Gains with their intervals.
    plain: as of `table`."""
    (group, *_) = experiment.groups
    manifest = json.loads((run / "manifest.json").read_text())
    facts = ("seed", "config_digest", "data_digest", "git")
    found: dict[str, Any] = {name: manifest[name] for name in facts}
    for when, (seed, pages), told in zip(
        ("before", "after"), evaluated(run), results(run), strict=True
    ):
        column = Column(when, seed, pages)
        sums = {arm: sums_of(experiment, column, group, gain(arm)) for arm in experiment.arms}
        learned = sums_of(experiment, column, group, gain("thoughts"))
        over = learned.over(sums[experiment.fixed]).mean(seed)
        losses = sums_of(experiment, column, group, loss)
        found[when] = {
            "positions": len(learned.nats),
            "nll/no_think": float(losses.nats.sum() / losses.tokens.sum()),
            "learned": learned.mean(seed),
            "learned_over_fixed": over,
            **{arm: mean for arm, each in sums.items() if (mean := each.mean(seed))},
            **(
                {"over_plain": over_plain(experiment, column, group, plain[seed]).mean(seed)}
                if seed in plain
                else {}
            ),
            "deciles": [
                {name: row[name] for name in ("nll_low", "nll_high", "gain", "gain_ci95")}
                for row in told["deciles"]
            ],
            "calls": _calls(column, group)[0],
            "precision": _calls(column, group)[1],
        }
    return found


def _calls(column: Column, group: str) -> tuple[float, float]:
    """Calls a thought, and the share of thoughts with a result that gain by all of the
    continuation; 0 where there are none."""
    calls, served = [], []
    for _, at in column.positions(group):
        for thought in at["thoughts"]:
            made = thought.get("calls", [])
            calls.append(len(made))
            if any(not call["failure"] for call in made):
                served.append(np.mean(thought["logp_think"]) > np.mean(at["logp_empty"]))
    return float(np.mean(calls)) if calls else 0.0, float(np.mean(served)) if served else 0.0


def _shown(column: Column, group: str, most: int = 5) -> list[str]:
    """The calls that gained most."""
    found = [
        (float(np.mean(t["logp_think"]) - np.mean(at["logp_empty"])), call["arguments"])
        for _, at in column.positions(group)
        for t in at["thoughts"]
        for call in t.get("calls", [])
        if not call["failure"]
    ]
    ordered = sorted(found, key=lambda pair: -pair[0])[:most]
    return [
        f"* {gained:+.3f} `{' '.join(text.split()).replace('`', '')}`" for gained, text in ordered
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--plain", type=Path, nargs="*", default=[], help="plain runs")
    parser.add_argument("--out", type=Path, help="default: beside this program")
    arguments = parser.parse_args()
    experiment = EXPERIMENTS[arguments.experiment]
    plain = dict(evaluated(run)[-1] for run in arguments.plain)
    text = "\n".join([experiment.head, "", *table(experiment, arguments.runs, plain), ""])
    out = arguments.out or Path(__file__).parent / experiment.results
    out.write_text(text, encoding="utf-8")
    path = out.parent / "results" / f"{arguments.experiment}.json"
    path.parent.mkdir(exist_ok=True)
    found = [summary(experiment, run, plain) for run in arguments.runs]
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
