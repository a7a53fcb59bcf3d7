"""Make the reference of metrics, registries and modules."""

import ast
import inspect
from pathlib import Path

from made_text import in_table

from rntp.run.metric_keys import METRICS, Metric

# First key of each group, in the order of the table.
GROUPS = {
    "step": "The step",
    "reward/mean": "Rewards and groups",
    "gain/mean": "What a thought is worth",
    "thought/tokens_mean": "Thoughts and answers",
    "kl/sampler": "Sampler, policy and reference",
    "placement/entropy": "Where it thought",
    "loss/total": "The loss",
    "tokens/context": "Sizes and compute",
    "time/step_s": "Time and memory",
    "data/ordinal_first": "Data",
    "moe/load_max": "Mixtures of experts",
}


def metrics() -> str:
    """Write every key of metrics.jsonl."""
    parts, group = [], ""
    for metric in METRICS:
        if (now := GROUPS.get(metric.key)) is not None:
            group = now
            parts.append(f"## {group}")
        parts += told_metric(metric)
    return "\n\n".join(parts)


def told_metric(metric: Metric) -> list[str]:
    """Write heading, unit, meaning, how to read it and what is bad."""
    facts = ["a plain number" if metric.unit == "1" else metric.unit]
    if metric.when not in ("", "every run"):
        facts.append(f"only with {metric.when}")
    parts = [f"### `{metric.key}`", f"*{' · '.join(facts)}*", metric.meaning]
    if metric.reading:
        parts.append(metric.reading)
    if metric.bad:
        parts.append(f"**Look into it:** {metric.bad}")
    return parts


def reward_schemes() -> str:
    """Write the registered reward schemes."""
    from rntp import rewards

    lines = ["| scheme | reward of a thought | no-think prediction | needs |", "|---|---|---|---|"]
    for name, scheme in sorted(rewards.REGISTRY.items()):
        needs = rewards.NEEDS[name]
        wants = [
            *(["answers"] if needs.answers else []),
            *([f"a judge ({needs.judge})"] if needs.judge else []),
            *(["extra `text`"] if needs.package else []),
            *(["a reading window"] if needs.lost_span else []),
        ]
        lines.append(
            f"| `{name}` | {first_line(scheme)} | {rewards.BASELINES[name]} | {', '.join(wants)} |"
        )
    return "\n".join(lines)


def placement_policies() -> str:
    """Write the registered placement policies."""
    from rntp import placement

    lines = ["| policy | score of a position |", "|---|---|"]
    for name, policy in sorted(placement.REGISTRY.items()):
        lines.append(f"| `{name}` | {first_line(policy)} |")
    return "\n".join(lines)


def first_line(function: object) -> str:
    """Take the first paragraph of a docstring, safe in a table."""
    return in_table((inspect.getdoc(function) or "").split("\n\n")[0])


ROOT = Path(__file__).parents[2]


# In the order of the data; what is not named comes after.
PACKAGES = (
    *("", "config", "data", "placement", "rollout", "model", "rewards", "objective", "training"),
    *("run", "runtime", "evaluation", "commands", "ablate", "report", "bench", "traces"),
)


def modules() -> str:
    """Write every package and file of the trainer with the first sentence of its docstring."""
    folder = ROOT / "rntp"
    found = sorted({path.parent.relative_to(folder) for path in folder.rglob("*.py")})
    order = {name: number for number, name in enumerate(PACKAGES)}
    found.sort(key=lambda p: (order.get(str(p.parts[0]) if p.parts else "", len(order)), str(p)))
    parts = []
    for package in found:
        name = "/".join(("rntp", *package.parts))
        said = first_sentence(folder / package / "__init__.py")
        rows = [
            f"| `{path.name}` | {first_sentence(path)} |"
            for path in sorted((folder / package).glob("*.py"))
            if path.name != "__init__.py"
        ]
        parts += [f"## `{name}/`", said]
        if rows:
            parts.append("\n".join(["| file | what it does |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def first_sentence(path: Path) -> str:
    """Take the first paragraph of a module's docstring, safe in a table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else ""
    return in_table((text or "").split("\n\n")[0])
