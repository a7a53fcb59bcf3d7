"""Puts the page together: one HTML file that needs no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rntp.config import scheme_label
from rntp.report.checks import Checks, checks_of
from rntp.report.effect import Compare, Effect, effect_of
from rntp.report.explorer import explorer
from rntp.report.html import render_template
from rntp.report.numbers import MISSING, clip
from rntp.report.runs import RunData, load_runs
from rntp.report.texts import LEVELS, shade, text_sections
from rntp.report.thoughts import StepThoughts, training_thoughts
from rntp.report.training import evaluation_chart, training_charts
from rntp.run.log import duration, starts_of
from rntp.runtime.files import write_text_atomic

_TEMPLATE = Path(__file__).resolve().parent / "template.html"
_MAX_CONFIG_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class RunView:
    """What the page says of one run beside its curves and texts. facts: (name, value)."""

    label: str
    facts: list[tuple[str, str]]
    effect: Effect
    checks: list[Checks]
    thoughts: list[StepThoughts]
    config_text: str
    num_metrics: int


def build_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write one static page about the runs to `out` and return it.

    Raises ConfigError when a folder is no run folder or a file in it is damaged, and OSError.
    """
    # Evaluation brings the whole model stack along; nothing else of the report needs it.
    from rntp.evaluation import compare

    html = render(load_runs(run_dirs), compare)
    # A lone surrogate in a model's text has no UTF-8 form.
    write_text_atomic(out, html.encode("utf-8", "replace").decode("utf-8"))
    return out


def render(runs: Sequence[RunData], compare: Compare) -> str:
    """The page. compare(before, after): `rntp.evaluation.compare`."""
    texts, bound = text_sections(runs)
    explored = explorer([(run.label, run.sample) for run in runs], bound)
    # A list of one step would lead nowhere else.
    steps = explored.steps if len(explored.steps) > 1 else []
    views = [
        RunView(
            label=run.label,
            facts=_facts(run),
            effect=effect_of(run, compare),
            checks=checks_of(run),
            thoughts=training_thoughts(run, bound),
            config_text=clip(run.config_text, _MAX_CONFIG_CHARS),
            num_metrics=len(run.metrics),
        )
        for run in runs
    ]
    return render_template(
        _TEMPLATE,
        kind="rntp report",
        title=clip(", ".join(run.label for run in runs), 200),
        runs=views,
        charts=training_charts(runs, steps),
        evaluation_chart=evaluation_chart(runs),
        explored=explored,
        texts=texts,
        legend=legend(bound),
    )


def legend(bound: float) -> list[tuple[str, str]]:
    """(class name, gain in nats) of each colour of the scale, harmful to helpful."""
    gains = [bound * level / LEVELS for level in range(-LEVELS, LEVELS + 1)]
    texts = [f"{gain:+.2g}".replace("-", "\N{MINUS SIGN}") if gain else "0" for gain in gains]
    return [(shade(gain, bound), text) for gain, text in zip(gains, texts, strict=True)]


def _facts(run: RunData) -> list[tuple[str, str]]:
    manifest, evaluation = run.manifest, (run.after or run.before or {})
    wanted = _of(run.config, "run", "steps")
    skipped = sum(bool(row.get("skipped")) for row in run.metrics)
    done = str(run.metrics[-1]["step"]) if run.metrics else "0"
    git = manifest.get("git") or {}
    commit = str(git.get("commit", MISSING))[:12] + (" + changes" if git.get("dirty") else "")
    seconds = sum(row.get("time/step_s") or 0.0 for row in run.metrics)
    restarts = len(starts_of(manifest)) - 1
    facts = [
        ("Steps", f"{done} of {wanted}" + (f", {skipped} skipped" if skipped else "")),
        ("Seed", _of(run.config, "run", "seed")),
        ("Model", _of(run.config, "model", "spec")),
        ("Reward", scheme_label((run.config.get("reward") or {}).get("scheme", MISSING))),
        ("Device", str(manifest.get("device", MISSING))),
        ("Time in steps", duration(seconds) if run.metrics else MISSING),
        ("Started", str(manifest.get("created", MISSING)) + _resumed(restarts)),
        ("Commit", commit),
        ("Config digest", _digest(manifest, evaluation, "config_digest")),
        ("Data digest", _digest(manifest, evaluation, "data_digest")),
    ]
    if "data_guarantee" in manifest:  # runs of before did not say
        facts.append(("Data", str(manifest["data_guarantee"])))
    return [(name, clip(value, 200)) for name, value in facts]


def _resumed(count: int) -> str:
    return "" if count == 0 else f", resumed {count} time{'s' if count > 1 else ''}"


def _of(config: dict, section: str, field: str) -> str:
    return str((config.get(section) or {}).get(field, MISSING))


def _digest(manifest: dict, evaluation: dict, name: str) -> str:
    return str(manifest.get(name) or evaluation.get(name) or MISSING)[:16]
