"""The results as one HTML file, in the manner of the report: its skeleton, style and tables."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

from rntp.ablate.results import Record, Results
from rntp.ablate.table import arm_rows, notes, provenance_facts, result_rows
from rntp.report.explorer import MAX_ROWS, StepSample, choose, explorer
from rntp.report.html import render_template
from rntp.report.page import legend
from rntp.report.texts import scale_bound
from rntp.report.thoughts import step_thoughts
from rntp.run.log import read_rollouts
from rntp.run.rollout_files import rollout_files
from rntp.runtime.provenance import redact, secret_values

_TEMPLATE = Path(__file__).resolve().parent / "page.html"

# Tags in a finding are shown as they are written, and it brings no pictures along: the page is one
# file, and nothing in it is loaded or run.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def page(
    results: Results, finding: str | None, plot: bytes | None, records: Sequence[Record]
) -> str:
    """The page. finding: Markdown that people wrote. plot: SVG. records: of the finished runs."""
    examples, bound = _examples(results, records)
    picture = base64.b64encode(plot).decode("ascii") if plot is not None else None
    return render_template(
        _TEMPLATE,
        kind="rntp ablation",
        title=results["name"],
        question=results["question"],
        rows=result_rows(results),
        notes=notes(results),
        plot=f"data:image/svg+xml;base64,{picture}" if picture else None,
        plot_alt=f"{results['plot']['y']} by arm" if results["plot"] else "",
        finding=Markup(_MARKDOWN.render(finding)) if finding is not None else None,
        thoughts=[(e.arm, e.seed, step_thoughts(e.step, e.rows, bound)) for e in examples],
        explored=explorer(_samples(examples), bound),
        legend=legend(bound),
        meanings=[(h, c["meaning"].replace("`", "")) for h, c in results["columns"].items()],
        base=results["base"],
        common=[f"{field}={value}" for field, value in results["set"].items()],
        arms=arm_rows(results),
        facts=provenance_facts(results),
    )


@dataclass(frozen=True, slots=True)
class _Example:
    """The thoughts of the last step of one run."""

    arm: str
    seed: int
    step: int
    rows: list[dict]


def _examples(results: Results, records: Sequence[Record]) -> tuple[list[_Example], float]:
    """Read the thoughts of the last step, by arm, and the bound of their colours, nats.

    Of the first finished run of each arm that has thoughts.
    """
    found: dict[str, _Example] = {}
    secrets = secret_values()
    for record in records:
        folder, arm = record.run.folder, record.run.arm
        steps = list(rollout_files(folder))
        if arm in found or not steps:
            continue
        rows = redact(read_rollouts(folder, steps[-1]), secrets)
        if rows:
            found[arm] = _Example(arm, record.run.seed, steps[-1], rows)
    bound = scale_bound(g for e in found.values() for r in e.rows for g in r["gain_per_token"])
    return [found[arm["name"]] for arm in results["arms"] if arm["name"] in found], bound


def _samples(examples: Sequence[_Example]) -> list[tuple[str, list[StepSample]]]:
    most = MAX_ROWS // max(len(examples), 1)
    return [
        (example.arm, [StepSample(example.step, choose(example.rows, most), len(example.rows))])
        for example in examples
    ]
