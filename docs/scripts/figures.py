"""Make the tables of README and pages from results that are committed as JSON."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import figures_gate
import figures_scale
import figures_tools

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
BENCH = ROOT / "kernels/benchmarks/results/cpu_intel_amx_2_cores"
PREPARATION = ROOT / "data_prep/benchmarks/results"
NO_BREAK = "\N{NO-BREAK SPACE}"
QUICKSTART = EXPERIMENTS / "quickstart/result.json"


@cache
def read(path: Path) -> Any:
    """Read a JSON file once."""
    return json.loads(path.read_text(encoding="utf-8"))


def ablation(*parts: str) -> dict[str, Any]:
    """Read the results of `rntp ablate` of experiments/PARTS."""
    *folders, name = parts
    return read(EXPERIMENTS.joinpath(*folders, "results", name, "table.json"))


def finding(*parts: str) -> str:
    """Take over what was found, as written beside the results."""
    *folders, name = parts
    return (EXPERIMENTS.joinpath(*folders, "results", name, "finding.md")).read_text("utf-8")


def arm(table: dict[str, Any], name: str) -> dict[str, Any]:
    """Find an arm by its name."""
    return next(arm for arm in table["arms"] if arm["name"] == name)


def of_seeds(arm: dict[str, Any], column: str) -> list[float]:
    """List a number by seed."""
    return [run["values"][column] for run in arm["runs"]]


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Write a number with a real minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def cell(arm: dict[str, Any], column: str, digits: int = 2, *, sign: bool = False) -> str:
    """Write mean over seeds [lowest, highest]."""
    found = arm["columns"][column]
    if not found or found["mean"] is None:
        return "–"
    mean, low, high = (
        number(found[key], digits, sign=sign) for key in ("mean", "lowest", "highest")
    )
    return f"{mean} [{low},{NO_BREAK}{high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def arms(found: dict[str, Any], columns: Sequence[tuple[str, int, bool]]) -> str:
    """Write a row an arm; columns: name, digits, with a sign."""
    rows = [
        [
            f"{each['name']}{' (control)' if each['control'] else ''}",
            *(cell(each, name, digits, sign=sign) for name, digits, sign in columns),
        ]
        for each in found["arms"]
    ]
    seeds = len(found["seeds"])
    said = f"Mean over {seeds} seeds [lowest, highest]. –: not measured."
    return table(["arm", *(name for name, _, _ in columns)], rows) + f"\n\n{said}"


def fenced(path: Path) -> str:
    """Show a text as it is."""
    return f"```text\n{path.read_text('utf-8').rstrip()}\n```"


def percent(values: Sequence[float]) -> str:
    """Write shares as percentages: 114, 112 and 112 %."""
    texts = [number(100 * value, 0) for value in values]
    return f"{', '.join(texts[:-1])} and {texts[-1]} %"


def interval(found: dict[str, Any]) -> str:
    """Write a value with its 95 % interval."""
    low, high = found["ci95"]
    value = number(found["value"], 3, sign=True)
    return f"{value} [{number(low, 3, sign=True)}, {number(high, 3, sign=True)}]"


def quickstart_output() -> str:
    """Show what the quickstart printed."""
    return "\n".join(["```text", *read(QUICKSTART)["lines"], "```"])


def quickstart_table() -> str:
    """Write the quickstart's before and after."""
    rows = [
        [
            name,
            number(row["before"], 3, sign="gain" in name),
            number(row["after"], 3, sign="gain" in name),
            interval(row["change"]),
        ]
        for name, row in read(QUICKSTART)["rows"].items()
    ]
    return table(["held out, nats a token", "before", "after", "change [95 % interval]"], rows)


def quickstart_gains() -> str:
    """Say what the quickstart's thoughts gain, and what else could stand in their place."""
    found = read(QUICKSTART)
    gain, bounds = found["rows"]["gain of thinking"], found["gain_ci95_after"]
    others = [
        f"{name} {number(row['after']['value'], 3, sign=True)}"
        for name, row in found["beside"].items()
        if name.endswith("of the page") or name.startswith("control")
    ]
    after = interval({"value": gain["after"], "ci95": bounds})
    return (
        f"Gain {number(gain['before'], 3, sign=True)} → {after} nats a token; "
        f"in its place {'; '.join(others)}"
    )


def quickstart_beside() -> str:
    """Write what else could stand in the place of the quickstart's thoughts."""
    rows = [
        [name, number(row["before"], 3, sign=True), interval(row["after"])]
        for name, row in read(QUICKSTART)["beside"].items()
    ]
    return table(["gain of what else could be, nats a token", "before", "after [95 %]"], rows)


def speed() -> str:
    """Write the whole step beside other loops, at two sizes."""
    sizes = {"256": read(BENCH / "step.json"), "1,024": read(BENCH / "L1024/step.json")}
    rows = []
    for name in sizes["256"]["providers"]:
        row = [name]
        for found in sizes.values():
            figures = found["providers"][name]
            times = "1" if name == "rntp" else number(figures["times_rntp"], 1)
            row += [f"{number(figures['median_s'], 1)} s", f"{times} ×"]
        rows.append(row)
    head = ["step: rollouts, forward, rewards, backward"]
    for size in sizes:
        head += [f"{size} tokens", "time of rntp"]
    return table(head, rows)


def speed_parts() -> str:
    """Write parts of the step beside the usual loop's, and what a continuation term changes."""
    rows = []
    for name, said in (
        ("rollout", "rollouts"),
        ("tree", "forward, rewards, backward"),
        ("step", "the whole step"),
        ("step_continuation", "the whole step, with a term on continuations"),
    ):
        providers = read(BENCH / f"{name}.json")["providers"]
        usual = next(figures for key, figures in providers.items() if key.startswith("unshared"))
        rows.append(
            [
                said,
                f"{number(providers['rntp']['median_s'], 1)} s",
                f"{number(usual['times_rntp'], 1)} ×",
            ]
        )
    return table(["", "rntp", "usual loop, times that"], rows)


def save_stall() -> str:
    """Write how long training stands still for a save."""
    found = read(EXPERIMENTS / "checkpoints/results/stall.json")
    rows = []
    for name, key in (
        ("written at once", "at_once"),
        ("asynchronous", "stall"),
        ("asynchronous, and the update comes at once", "stall_worst"),
    ):
        best, median = found["best_s"][key], found["median_s"][key]
        rows.append([name, f"{best:.2g} s", f"{median:.2g} s"])
    return table(["training stands still", "best", "median"], rows)


def growing() -> str:
    """Write what a corpus that grows teaches, by frontier and seed."""
    names = {"learnt": "learnt", "even": "drawn evenly"}
    rows = [
        [
            names[row["arm"]],
            str(row["seed"]),
            f"{row['learnable']:.0%}",
            f"{row['traps']:.1%}",
            " → ".join(number(row[f"gain_{when}"], 3, sign=True) for when in ("before", "after")),
            f"{row['nll_before']:.3f} → {row['nll_after']:.3f}",
        ]
        for name in names
        for row in read(EXPERIMENTS / "grow/results/table.json")
        if row["arm"] == name
    ]
    asked = "requests to the two regions"
    head = ["frontier", "seed", asked, "to traps", "gain, nats a token", "loss with thoughts"]
    return table(head, rows)


def mixing() -> str:
    """Write what a head that mixes does to gain and harm."""
    names = ("gain, nats", "solved", "easy", "impossible", "pages, no-think", "weight")
    found = ablation("mixing", "mixing")
    return arms(found, [(name, 2, name not in ("solved", "weight")) for name in names])


def judges_planted() -> str:
    """Write what judges are worth as a reward where the right answer is known."""
    return arms(
        ablation("judges", "planted"),
        [
            ("gain, nats", 2, True),
            ("of oracle", 2, False),
            ("solved", 2, False),
            ("judge and likelihood, AUC", 2, False),
            ("judges' tokens", 0, False),
        ],
    )


def planted_run() -> str:
    """Write the planted run and its controls."""
    return arms(
        ablation("planted", "run"),
        [
            ("gain, nats", 2, True),
            ("of oracle", 2, False),
            ("solved", 2, False),
            ("impossible", 3, True),
            ("another's thought", 2, True),
        ],
    )


def planted_placement() -> str:
    """Write the ablation of placements."""
    found = ablation("planted", "placement")
    names = [name for name in ("gain, nats", "of oracle", "precision") if name in found["columns"]]
    return arms(found, [(name, 2, name.startswith("gain")) for name in names])


def planted_rewards() -> str:
    """Write the ablation of rewards."""
    found = ablation("planted", "rewards")
    names = ("gain, nats", "of oracle", "thought, tokens")
    return arms(
        found, [(name, 2, name.startswith("gain")) for name in names if name in found["columns"]]
    )


def methods() -> str:
    """Write the comparison of methods, best first by what they solve."""
    found = dict(ablation("methods", "methods"))
    found["arms"] = sorted(
        found["arms"], key=lambda a: (a["control"], -a["columns"]["solved"]["mean"])
    )
    return arms(
        found,
        [
            ("solved", 2, False),
            ("gain, nats", 2, True),
            ("pages, no-think", 2, True),
            ("thought, tokens", 1, False),
            ("TFLOP", 1, False),
        ],
    )


def text_rewards() -> str:
    """Write the rewards on ordinary text."""
    return arms(
        ablation("ablations", "rewards"),
        [
            ("gain, nats", 3, True),
            ("change of gain", 3, True),
            ("loss, no thought", 3, True),
            ("loss, thought", 3, True),
        ],
    )


def models() -> str:
    """Count the classes of models that run."""
    found = read(EXPERIMENTS / "models/results.json")
    built = [model for model in found if model["shared"] != "not built"]
    rows = [
        [said, str(sum(model[key] == "exact" for model in built)), str(len(built))]
        for said, key in (
            ("as token trees", "shared"),
            ("one sequence a thought", "unshared"),
        )
    ]
    return table(["tiny models of the causal classes of transformers", "exact", "of"], rows)


def loader() -> str:
    """Write contexts a CPU second of several loaders."""
    found = read(PREPARATION / "loader.json")["results"]
    rows = [
        [name, f"{figures['contexts_per_cpu_s']:,.0f}"]
        for name, figures in found.items()
        if "contexts_per_cpu_s" in figures
    ]
    return table(["loader", "contexts a CPU second"], rows)


def charsets() -> str:
    """Write how many characters readers get right."""
    found = read(PREPARATION / "charsets.json")["readers"]
    rows = [
        [
            name,
            f"{100 * figures['shares']['all']['right']:.2f} %",
            f"{100 * figures['shares']['all']['right_beyond_ascii']:.2f} %",
        ]
        for name, figures in found.items()
    ]
    return table(["reader", "characters right", "beyond ASCII"], rows)


def preparation() -> str:
    """Write what a preparation costs."""
    rows = [
        [
            name,
            f"{figures['html_mb']:,.0f}",
            f"{figures['cpu_seconds']:,.0f} s",
            number(figures["html_mb_per_cpu_s"], 1),
            f"{figures['peak_memory_mb'] / 1000:.2f} GB",
        ]
        for name, figures in read(PREPARATION / "prep.json")["runs"].items()
    ]
    head = ["preparation", "HTML, MB", "CPU", "MB a CPU second", "peak memory, all processes"]
    return table(head, rows)


def corpus_index() -> str:
    """Write what opening a corpus costs by its size."""
    rows = [
        [
            f"{row['documents']:,}",
            "mapped" if row["mapped"] else "in memory",
            *(f"{number(row[kind]['open, s'])} s" for kind in ("first", "again")),
            f"{max(row[kind]['open, own MB'] for kind in ('first', 'again')):.0f} MB",
            *(f"{row['again'][f'{what} a second']:,.0f}" for what in ("places", "contexts")),
        ]
        for row in read(PREPARATION / "corpus_index.json")["rows"]
    ]
    opened = ["first opening to first context", "the next", "memory"]
    lookups = ["ordinals to documents a second", "contexts read a second"]
    return table(["documents", "index", *opened, *lookups], rows)


def damage() -> str:
    """Write what damage costs other loaders."""
    rows = [
        [row["fault"], row["loader"], str(row["lost"]), row["told"]]
        for row in read(PREPARATION / "damage.json")["rows"]
        if row["fault"] != "none"
    ]
    return table(["damage", "loader", "documents lost of 1,000", "what it says"], rows)


def results() -> str:
    """Write the one table of README: what was asked and what came out."""
    run, compared = ablation("planted", "run"), ablation("methods", "methods")
    recipe = arm(run, "RNTP")
    text = ablation("ablations", "rewards")
    rewards = [
        a["difference"]["mean"] for a in text["arms"] if a["difference"] and not a["control"]
    ]
    ranked = sorted(
        (a for a in compared["arms"] if not a["control"]),
        key=lambda a: -a["columns"]["solved"]["mean"],
    )
    best = ", ".join(f"{a['name']} {number(a['columns']['solved']['mean'])}" for a in ranked[:3])
    found = sum(a["columns"]["of oracle"]["mean"] > 0.8 for a in ranked)
    step = read(BENCH / "step.json")["providers"]
    trl = [p["times_rntp"] for name, p in step.items() if name.startswith("TRL")]
    usual = next(p["times_rntp"] for name, p in step.items() if name.startswith("unshared"))
    long = read(BENCH / "L1024/step.json")["providers"]
    longer = [p["times_rntp"] for name, p in long.items() if name != "rntp"]
    rows = [
        [
            "Does RL find a gain that is known to be there? Planted corpus, 1M parameters",
            f"{percent(of_seeds(recipe, 'of oracle'))} of the oracle's gain in three seeds, from "
            f"{percent(of_seeds(recipe, 'of oracle before'))}; a random reward gains nothing",
        ],
        [
            f"Which of {len(ranked)} published methods find it, at equal sizes?",
            f"{found} reach more than 80 % of the oracle's gain; most of the loss that could be "
            f"removed is removed by {best}",
        ],
        [
            "Does thinking pay on ordinary pages, where only their last 16 tokens are left? "
            "Quickstart, 135M, 18 steps",
            quickstart_gains(),
        ],
        [
            "Does RL learn what to ask a tool, and when to leave it? Planted pages, 1M parameters",
            figures_tools.planted_calls(),
        ],
        [
            "Can a model tell where thinking pays? Whole planted pages, 3 seeds",
            figures_gate.worth_it(),
        ],
        [
            "Does looking something up pay, all of the page in view? 2,600 documents, 135M, "
            "calls begun for the policy",
            figures_tools.opened_gain(),
        ],
        [
            "… and fixed queries, and calls that the policy was taught?",
            figures_tools.fixed_gain(),
        ],
        [
            "Does running the page's examples pay? Outputs in documentation of Python and Django, "
            "135M, before any training, one seed",
            figures_tools.outputs_gain(),
        ],
        [
            f"And thoughts alone, with all of the page in view? {len(rewards)} rewards, two seeds",
            f"None: {number(min(rewards), 3, sign=True)} to {number(max(rewards), 3, sign=True)} "
            "nats against the same run without a policy gradient",
        ],
        [
            "What is sharing worth? A whole step on 2 CPU cores",
            f"{number(step['rntp']['median_s'], 1)} s; the usual loop takes {number(usual, 1)} "
            f"times as long, TRL {number(min(trl), 1)} to {number(max(trl), 1)} times; on pages "
            f"of 1,024 tokens {number(min(longer), 1)} to {number(max(longer), 1)} times",
        ],
    ]
    return table(["question", "answer so far"], rows)


MAKERS: dict[str, Callable[[], str]] = {
    "charsets": charsets,
    "corpus_index": corpus_index,
    "damage": damage,
    "loader": loader,
    "methods": methods,
    "mixing": mixing,
    "mixing_finding": lambda: finding("mixing", "mixing"),
    "methods_finding": lambda: finding("methods", "methods"),
    "models": models,
    "preparation": preparation,
    "placement_finding": lambda: finding("planted", "placement"),
    "planted_placement": planted_placement,
    "planted_rewards": planted_rewards,
    "planted_run": planted_run,
    "quickstart_beside": quickstart_beside,
    "quickstart_output": quickstart_output,
    "quickstart_table": quickstart_table,
    "results": results,
    "rlvr": lambda: (EXPERIMENTS / "rlvr/results/planted.md").read_text("utf-8"),
    "rewards_finding": lambda: finding("planted", "rewards"),
    "generations": lambda: (EXPERIMENTS / "generations/results/table.md").read_text("utf-8"),
    "growing": growing,
    "judges_finding": lambda: finding("judges", "planted"),
    "judges_planted": judges_planted,
    "judges_fooled": lambda: fenced(EXPERIMENTS / "judges/results/audit.txt"),
    "save_stall": save_stall,
    "speed": speed,
    "speed_parts": speed_parts,
    "text_finding": lambda: finding("ablations", "rewards"),
    "text_rewards": text_rewards,
    **figures_gate.MAKERS,
    **figures_scale.MAKERS,
    **figures_tools.MAKERS,
}
