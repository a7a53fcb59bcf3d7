"""The table of `vllm_check.py`."""

from typing import Any

DTYPES = ("float32", "bfloat16")


def page(done: dict[str, Any]) -> str:
    """Write what was measured as VLLM.md."""
    first = next(iter(done.values()))["about"]
    lines = [
        "# vLLM beside the in-process engine",
        "",
        "SmolLM2-135M-Instruct on the CPU, pages of the quickstart, thoughts of at most 16 tokens,",
        "8 at each of 4 positions of a page, temperature 1. Made by `make vllm-check`; all figures",
        "are in `results/vllm.json`.",
        "",
        f"vLLM {first['vllm']}, torch {first['torch']}, transformers {first['transformers']}; "
        f"{first['threads']} thread(s) of {first['cores']} cores each. The machine was shared:",
        "load averages stand beside each table.",
        "",
    ]
    for title, part in (
        ("agreement", _agreement),
        ("planted", _planted),
        ("speed", _speed),
        ("runs", _runs),
    ):
        if any(key.startswith(title) for key in done):
            lines += [*part(done), ""]
    return "\n".join(lines)


def _of(done: dict[str, Any], stage: str) -> dict[str, Any]:
    return {d: done[f"{stage} {d}"] for d in DTYPES if f"{stage} {d}" in done}


def _loads(found: dict[str, Any]) -> str:
    told = [
        f"{name}: commit {one['about']['commit']}, load {one['about']['load_before']:.1f} to "
        f"{one['about']['load_after']:.1f}, {one['about']['seconds']} s"
        for name, one in found.items()
    ]
    return f"({'; '.join(told)})"


def _agreement(done: dict[str, Any]) -> list[str]:
    found = _of(done, "agreement")
    rows = {
        "canary: mean distance, nats a token": lambda a: f"{a['canary']:.2g}",
        "thoughts, tokens compared": lambda a: f"{a['thoughts']}, {a['tokens']}",
        "log-probs, trainer − sampler: mean |Δ|, nats": lambda a: f"{a['gap_mean']:.2g}",
        "… largest": lambda a: f"{a['gap_max']:.2g}",
        "… mean": lambda a: f"{a['gap_signed']:+.1g}",
        "… KL by k3": lambda a: f"{a['kl']:.1g}",
        "greedy thoughts equal to in-process ones": lambda a: f"{a['greedy']['thoughts']:.1%}",
        "… tokens before the first difference": lambda a: f"{a['greedy']['tokens']:.1%}",
        "the same requests twice: thoughts equal": lambda a: f"{a['same_twice']['thoughts']:.1%}",
        "start of vLLM with the first load, s": lambda a: f"{a['start_s']:.0f}",
    }
    lines = ["## Agreement", "", _loads(found), "", f"| | {' | '.join(found)} |"]
    lines.append("|---|" + "---|" * len(found))
    for name, show in rows.items():
        lines.append(f"| {name} | {' | '.join(show(one) for one in found.values())} |")
    return lines


def _planted(done: dict[str, Any]) -> list[str]:
    found = _of(done, "planted")
    lines = [
        "## Wrong weights, planted",
        "",
        "Each after an update that moves every weight by 1e-4, up or down by chance: what vLLM",
        "gets to load, how far its canary then lies, and whether that is refused",
        f"{_loads(found)}.",
        "In bfloat16 the distance alone does not tell earlier weights from new ones; that vLLM",
        "gives log-probs again that it has given before does.",
        "",
        "| weights | " + " | ".join(f"{d}: nats, refused" for d in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name, planted in next(iter(found.values())).items():
        if not isinstance(planted, dict) or name == "about":
            continue
        cells = [
            f"{one[name]['distance']:.2g}, {'yes' if one[name]['refused'] else 'no'}"
            for one in found.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    bounds = ", ".join(f"{one['bound']:g} in {dtype}" for dtype, one in found.items())
    return [*lines, "", f"Bounds: {bounds}."]


def _speed(done: dict[str, Any]) -> list[str]:
    found = _of(done, "speed")
    lines = [
        "## Speed",
        "",
        "Drawn tokens a second with the prefill, median of three turns, vLLM and in-process in",
        f"turns {_loads(found)}.",
        "",
        "| | vLLM | in-process | vLLM / in-process |",
        "|---|---|---|---|",
    ]
    for dtype, one in found.items():
        for branches, rates in one.items():
            if not branches.endswith("branches"):
                continue
            a, b = (rates[name]["tokens_per_s"] for name in ("vllm", "inprocess"))
            lines.append(f"| {dtype}, {branches} | {a:.0f} | {b:.0f} | {a / b:.2f} |")
    loads = ", ".join(f"{one['load_s']:.1f} s in {dtype}" for dtype, one in found.items())
    return [*lines, "", f"New weights (written, loaded, scored by both): {loads}."]


def _runs(done: dict[str, Any]) -> list[str]:
    found = {name: one for name, one in done["runs"].items() if name != "about"}
    lines = [
        "## Runs",
        "",
        f"Three small steps of `vllm.yaml` in bfloat16 {_loads({'runs': done['runs']})};",
        "means over them. The start of vLLM is in no step.",
        "",
        "| | exit code | `kl/sampler` | canary | `policy/ess_frac` | rollout, s a step | step, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        rows = one["metrics"]

        def mean(*keys: str, of: list[dict[str, float]] = rows) -> str:
            values = [row[key] for row in of for key in keys if key in row]
            return f"{sum(values) / len(values):.3g}" if values else "–"

        lines.append(
            f"| {name} | {one['exit_code']} | {mean('kl/sampler')} | "
            f"{mean('sampler/canary', 'rollout/canary')} | {mean('policy/ess_frac')} | "
            f"{mean('time/rollout_s')} | {mean('time/step_s')} |"
        )
    return lines
