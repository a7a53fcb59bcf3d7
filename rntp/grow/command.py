"""`rntp data grow`, top to bottom: the run's model, pages by what they teach it, the segment, and
the mixture that the run goes on with."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rntp.data.manifest import Manifest
from rntp.grow.frontier import State
from rntp.grow.growth import READ, Growth, begin, current
from rntp.grow.ledger import FILE, Ledger, Row
from rntp.grow.pages import Pages
from rntp.grow.probe import Prober, check_run, earlier_step, open_at
from rntp.grow.segment import SEGMENTS, Preparer
from rntp.grow.settings import Frontier
from rntp.grow.weights import corpora, learn
from rntp.run import checkpoint
from rntp.run import folder as run_folder
from rntp.runtime.files import write_json

SOURCE = "source.json"
SHOWN = ("gain", "spread", "elsewhere")  # of a region, in the table of a growth


def grow(
    run_dir: Path, frontier: Path, step: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Grow the corpus of a run by one segment, or finish the growth that a kill left.

    step: of the checkpoint to go by; None takes the newest whole one. Writes the ledger, the pages,
    the segment, and `source.json` into the frontier's output. Returns what it did. Raises
    ConfigError, DataError and CheckpointError.
    """
    settings, config = Frontier.load(frontier), run_folder.load_config(run_dir)
    policy = check_run(config, settings.placement)
    folders, pages = corpora(config), Pages(settings)
    settings.output.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(settings.output):
        ledger = Ledger(settings.output / FILE)
        facts = begin(settings, ledger, run_dir.resolve(), partial(_newest, run_dir, step, say))
        growth = facts["growth"]
        say(f"growth {growth} by step {facts['step']}, beside step {facts['earlier']}")
        models = [open_at(config, run_dir, facts[name]) for name in ("step", "earlier")]
        probe = Prober(config, models[0], models[1], policy, settings.positions, settings.thoughts)
        others = [*folders, *(f for f in _segments(settings, ledger) if f not in folders)]
        preparer = Preparer(settings, models[0].tokenizer, config.model.spec, others)
        state = State(settings)
        for row in ledger.rows:
            state.apply(row)
        taken = Growth(settings, ledger, state, preparer, probe, pages, say)
        taken.finish_pages()
        if not taken.rows("segment"):
            ledger.add(_segment(taken, preparer, settings, growth, say))
        here = [*folders, *(f for f in _segments(settings, ledger) if f not in folders)]
        rows = learn(here, probe, config, settings.pages_a_look, settings.seed, settings.most_tilt)
        write_json(settings.output / SOURCE, {row["corpus"]: row["share"] for row in rows})
        ledger.add({"row": "weights", "corpora": rows})
        return summary(ledger.rows)


def summary(rows: list[Row]) -> dict[str, Any]:
    """What the last growth did, for people and scripts."""
    here = current(rows)
    pages = [row for row in here if row["row"] == "page"]
    worths = {w["number"]: w for row in here if row["row"] == "worth" for w in row["pages"]}
    regions: dict[str, dict[str, Any]] = {}
    for row in pages:
        found = regions.setdefault(
            row["region"], {"pages": 0, "requests": 0, "documents": 0, **dict.fromkeys(SHOWN)}
        )
        found["pages"] += row["outcome"] == READ
        found["requests"] += row["requests"]
        worth = worths.get(row["number"])
        found["documents"] += worth is not None and worth["document"] is not None
    for name, found in regions.items():
        mine = [worths[r["number"]] for r in pages if r["region"] == name and r["number"] in worths]
        for key in SHOWN:
            values = [w[key] for w in mine if w.get(key) is not None]
            found[key] = sum(values) / len(values) if values else None
    (segment,) = (row for row in here if row["row"] == "segment")
    (weights,) = (row for row in here if row["row"] == "weights")
    return {
        **{key: here[0][key] for key in ("growth", "step", "earlier")},
        "requests": sum(row["requests"] for row in pages),
        "bytes": sum(row["bytes"] for row in pages),
        "random": sum(row["why"] == "random" for row in pages),
        "regions": regions,
        "segment": {key: segment[key] for key in ("folder", "documents", "tokens", "digest")},
        "corpora": weights["corpora"],
    }


def go_on(facts: dict[str, Any]) -> str:
    """The arguments with which the run goes on over what has grown."""
    mixture = {row["corpus"]: row["share"] for row in facts["corpora"]}
    return f"--accept-data-change --set 'data.source={json.dumps(mixture)}'"


def _newest(run_dir: Path, step: int | None, say: Callable[[str], None]) -> tuple[int, int]:
    path = checkpoint.choose(run_dir / "checkpoints", step, say)
    found = int(checkpoint.load_state(path)["step"])
    return found, earlier_step(run_dir, found)


def _segments(settings: Frontier, ledger: Ledger) -> list[Path]:
    rows = (row for row in ledger.rows if row["row"] == "segment" and row["documents"])
    return [settings.output / SEGMENTS / row["folder"] for row in rows]


def _segment(
    taken: Growth,
    preparer: Preparer,
    settings: Frontier,
    growth: int,
    say: Callable[[str], None],
) -> Row:
    """Make the corpus of the pages that were taken; the ledger's row of it."""
    judged = [w for row in taken.rows("worth") for w in row["pages"]]
    usable = sum(w["document"] is not None for w in judged)
    row: Row = {"row": "segment", "folder": f"{growth:04d}", "documents": 0, "tokens": 0}
    if not usable:
        say("no page of this growth gave a document, so there is no segment")
        return {**row, "digest": None, "funnel": {}}
    manifest: Manifest = preparer.segment(
        growth, [row for row in taken.rows("page") if row["outcome"] == READ], say
    )
    found = {"documents": manifest.num_docs, "tokens": manifest.total_tokens}
    return {**row, **found, "digest": manifest.digest, "funnel": manifest.funnel}
