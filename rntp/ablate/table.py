"""The results as people read them: rows of plain text, Markdown for the file, the console's table.

`rntp.ablate.page` makes HTML of the same rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rntp.ablate.matching import match_lines
from rntp.ablate.results import Results
from rntp.report.numbers import MISSING, number, signed
from rntp.run.log import duration
from rntp.show import columns

PLOT = "plot.svg"


def markdown(results: Results, finding: str | None) -> str:
    """table.md. finding: what people wrote about it, taken over as it is."""
    parts = [f"# {results['name']}", f"**{_escape(results['question'])}**"]
    parts.append(_markdown_table([[_escape(cell) for cell in row] for row in result_rows(results)]))
    parts.append(_escape(notes(results)))
    if results["plot"]:
        parts.append(f"![{_escape(results['plot']['y'])} by arm]({PLOT})")
    if finding is not None:
        parts += ["## What was found", finding.strip("\n")]
    meanings = [
        f"- {_escape(header)}: {column['meaning']}" for header, column in results["columns"].items()
    ]
    parts += ["## Columns", "\n".join(meanings)]
    parts += ["## Arms", _base(results), _markdown_table(_arm_rows(results))]
    facts = [[name, _escape(text)] for name, text in provenance_facts(results)]
    parts += ["## How it was made", _markdown_table([["", ""], *facts])]
    parts.append("Every number by arm and seed, and the command of every run: `table.json`.")
    return "\n\n".join(parts) + "\n"


def results_table(results: Results) -> str:
    """The table for the console."""
    return columns(result_rows(results))


def grid_table(facts: Mapping[str, Any]) -> str:
    """Return what a dry run tells: the runs, and where the table will be."""
    runs = facts["runs"]
    finished = sum(run["state"] == "finished" for run in runs)
    steps = sum(run["steps"] for run in runs if run["state"] != "finished")
    rows = [["arm", "seed", "steps", "state", "config digest", "run folder"]]
    for run in runs:
        name = run["arm"] + (" (control)" if run["control"] else "")
        digest = run["config_digest"][:16]
        cells = (name, run["seed"], run["steps"], run["state"], digest, run["folder"])
        rows.append([str(cell) for cell in cells])
    return "\n".join(
        [
            f"{facts['name']}: {facts['question']}",
            f"{len(runs)} runs, {finished} finished, {steps} steps in the others",
            "",
            columns(rows),
            "",
            *([*match_lines(facts["match"]), ""] if facts["match"] else []),
            f"table: {facts['table']}",
            "Nothing was written. `rntp train … --dry-run` estimates memory and time of one run.",
        ]
    )


def result_rows(results: Results) -> list[list[str]]:
    """Header and one row an arm, plain text."""
    compared = results["reference"] is not None
    header = ["arm", "seeds", *results["columns"]]
    header += [f"Δ {results['plot']['y']}"] if compared else []
    return [header, *(_row(results, arm) for arm in results["arms"])]


def _row(results: Results, arm: Mapping[str, Any]) -> list[str]:
    name = arm["name"] + (" (control)" if arm["control"] else "")
    finished = sum(run["state"] == "finished" for run in arm["runs"])
    cells = [name, _seeds(arm["runs"])]
    for header, column in results["columns"].items():
        sign = column.get("sign", False) or "change" in column
        summary = arm["columns"][header]
        cells.append(_summary(summary, column.get("digits", 3), sign))
        if summary and summary["n"] < finished:
            cells[-1] += f" (n {summary['n']})"
    if results["reference"] is not None:
        digits = results["columns"][results["plot"]["y"]].get("digits", 3)
        is_reference = arm["name"] == results["reference"]
        cells.append("reference" if is_reference else _difference(arm["difference"], digits))
    return cells


def _seeds(runs: Sequence[Mapping[str, Any]]) -> str:
    """3; or 2 of 3: seed 1 failed (exit code 6)."""
    finished = sum(run["state"] == "finished" for run in runs)
    if finished == len(runs):
        return str(finished)
    gaps = ", ".join(_gap(run) for run in runs if run["state"] != "finished")
    return f"{finished} of {len(runs)}: {gaps}"


def _gap(run: Mapping[str, Any]) -> str:
    seed, code = f"seed {run['seed']}", run["exit_code"]
    if code == 5:
        return f"{seed} stopped"
    if code:
        return f"{seed} failed (exit code {code})"
    return f"{seed} not {'finished' if run['state'] == 'begun' else 'run'}"


def _summary(summary: Mapping[str, Any] | None, digits: int, sign: bool) -> str:
    """0.412 [0.401, 0.423]: the mean over seeds, the lowest and the highest."""
    if summary is None:
        return MISSING
    form = signed if sign else number
    mean = form(summary["mean"], digits)
    if summary["n"] == 1:
        return mean
    return f"{mean} [{form(summary['lowest'], digits)}, {form(summary['highest'], digits)}]"


def _difference(difference: Mapping[str, Any] | None, digits: int) -> str:
    if difference is None:
        return MISSING
    mean = signed(difference["mean"], digits)
    if difference["ci95"] is None:
        return mean
    low, high = difference["ci95"]
    return f"{mean} [{signed(low, digits)}, {signed(high, digits)}]"


def notes(results: Results) -> str:
    """Say how to read the rows, plain text."""
    sentences = []
    if len(results["seeds"]) > 1:
        sentences.append("Mean over seeds [lowest, highest].")
    sentences.append(f"{MISSING}: not measured.")
    if results["reference"] is not None:
        sentences.append(
            f"Δ: difference to “{results['reference']}”, paired by seed, mean over seeds "
            "[95 % t-interval of the mean]."
        )
    if results["match"] is not None:
        unit, reference = results["match"]["unit"], results["match"]["reference"]
        sentences.append(
            f"Every arm makes as many steps as spend the {unit} of “{reference}”, by the estimate "
            "at full thought length; what was really spent is a column."
        )
    return " ".join(sentences)


def _base(results: Results) -> str:
    sets = f", with {_sets(results['set'])} for all" if results["set"] else ""
    return f"Over `{results['base']}`{sets}:"


def _arm_rows(results: Results) -> list[list[str]]:
    header, *rows = arm_rows(results)
    sets = [_sets(arm["overrides"]) or "nothing" for arm in results["arms"]]
    return [
        header,
        *([_escape(row[0]), row[1], s, row[3]] for row, s in zip(rows, sets, strict=True)),
    ]


def arm_rows(results: Results) -> list[list[str]]:
    """Header and what each arm is, plain text."""
    rows = [["arm", "steps", "sets", "config digest by seed"]]
    for arm in results["arms"]:
        sets = ", ".join(f"{field}={value}" for field, value in arm["overrides"].items())
        digests = ", ".join(f"{run['seed']}: {run['config_digest'][:12]}" for run in arm["runs"])
        rows.append([arm["name"], str(arm["steps"]), sets or "nothing", digests])
    return rows


def _sets(overrides: Mapping[str, object]) -> str:
    """`reward.horizon=1`, `optim.lr=0.001`"""
    texts = (f"{field}={value}".replace("`", "'") for field, value in overrides.items())
    return ", ".join(f"`{text}`".replace("|", "\\|") for text in texts)


def provenance_facts(results: Results) -> list[tuple[str, str]]:
    """Say where the numbers come from, plain text. Several values stand beside one another."""
    source = results["provenance"]
    commits = [
        f"{git['commit'][:12]}{' + changes' if git['dirty'] else ''}" for git in source["git"]
    ]
    versions = [
        " ".join(f"{name} {version}" for name, version in found.items())
        for found in source["versions"]
    ]
    load = source["load_average"]
    facts = {
        "command": [source["command"]],
        "commit": commits,
        "seeds": [str(seed) for seed in results["seeds"]],
        "model": source["models"],
        "corpus": [digest[:16] for digest in source["data_digests"]],
        "device": source["devices"],
        "threads of a run": [str(threads) for threads in source["threads"]],
        "versions": versions,
        "load average, 1 min": [f"{load['lowest']} to {load['highest']}"] if load else [],
        "time of all runs": [duration(source["wall_s"])],
        "first start, last end": [f"{source['started']}, {source['ended']}"],
        "made": [source["made"]],
    }
    return [(name, "; ".join(found) or MISSING) for name, found in facts.items()]


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Padded, so that it reads as text too. The cells are Markdown."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _escape(text: str) -> str:
    """Text that neither ends its cell nor is taken for a tag or emphasis."""
    for mark in ("\\", "|", "*", "_", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("<", "&lt;").replace("\n", " ")
