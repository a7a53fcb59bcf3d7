"""Plain-text tables for the console. Pure functions from facts to text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Terminal escapes, marks that turn the order of a line around, halves of a character: texts of a
# corpus may carry them all. A tab and a line feed are harmless.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Put a sign in the place of every character that would do something to a terminal."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def facts_table(facts: Mapping[str, object]) -> str:
    """One fact a line, names aligned."""
    width = max(len(name) for name in facts)
    return "\n".join(f"{name:<{width}}  {_text(value)}" for name, value in facts.items())


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells, aligned, with a rule under the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def simulation_table(facts: Mapping[str, Any]) -> str:
    """Return what each rank reads, a line a context, and what is damaged."""
    names = ("step", "rank", "ordinal", "document", "start", "tokens", "visit")
    rows = [[str(row[name]) for name in names] for row in facts["contexts"]]
    lines = [
        f"corpus {facts['corpus'][:16]}, {facts['documents']} in a pass, {facts['world']} ranks",
        columns([list(names), *rows]),
        *(f"set aside and replaced: {damage}" for damage in facts["damaged"]),
    ]
    return "\n".join(lines)


def before_after(comparison: Mapping[str, Any]) -> str:
    """The four cells, before and after training, with the paired change of each."""
    header = (
        f"{'held-out, nats per token':<26}{'before':>9}{'after':>9}{'change':>9}   95 % interval"
    )
    lines = [header, "-" * len(header)]
    for name, label in (
        ("nll/no_think", "loss without thinking"),
        ("nll/think", "loss with thinking"),
        ("gain/mean", "gain of thinking"),
    ):
        row = comparison[name]
        low, high = row["ci95"]
        lines.append(
            f"{label:<26}{row['before']:>9.3f}{row['after']:>9.3f}{row['change']:>+9.3f}"
            f"   [{low:+.3f}, {high:+.3f}]"
        )
    low, high = comparison["gain_ci95"]["after"]
    lines.append(
        f"gain after training: 95 % interval [{low:+.3f}, {high:+.3f}], {_verdict(low, high)}"
        f" ({comparison['num_docs']} documents, {comparison['num_tokens']} tokens,"
        " paired bootstrap over documents)"
    )
    if row := comparison.get("tasks/pass_at_1"):
        lines.append(
            f"{'tasks solved, pass@1':<26}{row['before']:>9.3f}{row['after']:>9.3f}"
            f"{row['change']:>+9.3f}   {interval(row['ci95'])}"
        )
    if "memory" in comparison:
        lines += ["", *_beside_memory(comparison["memory"])]
    return "\n".join(lines)


def _beside_memory(memory: Mapping[str, Any]) -> list[str]:
    """What a memory has to be compared with, a line each."""
    rows = memory["rows"]
    named = [
        (f"{memory['longer_by']} tokens more of the page", rows["longer"]),
        ("thinking over these", rows["over_longer"]),
        *((f"control: {name}", row) for name, row in memory["controls"].items()),
        ("all of the page before", rows["whole"]),
    ]
    header = (
        f"{'gain of what else could be':<26}{'before':>9}{'after':>9}{'':>9}   95 % interval, after"
    )
    return [header, "-" * len(header)] + [
        f"{label:<26}{row['before']:>+9.3f}{row['after']:>+9.3f}{'':>9}   "
        f"{interval(row['ci95_after'])}"
        for label, row in named
    ]


def evaluation_table(result: Mapping[str, Any]) -> str:
    """One evaluation: means, gain with its interval, and the deciles."""
    low, high = result["gain/ci95"]
    lines = [
        f"{result['num_docs']} documents, {result['num_positions']} positions, "
        f"{result['num_tokens']} continuation tokens, horizon {result['horizon']}",
        f"loss without thinking  {result['nll/no_think']:.3f} nats per token",
        f"loss with thinking     {result['nll/think']:.3f}",
        f"gain of thinking       {result['gain/mean']:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"{_verdict(low, high)}",
        f"loss on whole pages    {result['reading']['nll']:.3f} without thinking, "
        f"{result['reading']['num_tokens']} tokens",
        f"thoughts               {result['thought/tokens_mean']:.1f} tokens, "
        f"{result['thought/closed_frac']:.0%} closed by the model",
        "",
        f"{'decile of no-think loss':<24}{'tokens':>8}{'no think':>10}{'think':>8}{'gain':>8}",
    ]
    for row in result["deciles"]:
        span = f"{row['decile']:>2}: {row['nll_low']:.2f} … {row['nll_high']:.2f}"
        lines.append(
            f"{span:<24}{row['num_tokens']:>8}{row['nll/no_think']:>10.3f}"
            f"{row['nll/think']:>8.3f}{row['gain']:>+8.3f}"
        )
    if "tasks" in result:
        lines += ["", *pass_rates(result["tasks"])]
    if "memory" in result:
        lines += ["", *memory_table(result["memory"])]
    if "mixing" in result:
        lines += ["", *mixing_lines(result["mixing"])]
    lines += ["", *next_token_table(result), "", *value_table(result)]
    if result["classes"]:
        lines += ["", *classes_table(result["classes"], result["reading"])]
    elif result["controls"]:
        lines += ["", f"{'other thoughts, next token':<26}{'gain':>8}   95 % interval"]
        for name, row in result["controls"].items():
            lines.append(f"{name:<26}{row['gain']:>+8.3f}   {interval(row['gain_ci95'])}")
    return "\n".join(lines)


def mixing_lines(found: Mapping[str, Any]) -> list[str]:
    """How predictions with a thought are mixed with those without, and what that is worth."""
    lines = [
        f"weight of the thought  {found['weight']:.3f}",
        f"gain of it read alone  {found['alone']:+.3f} {interval(found['alone_ci95'])}",
        f"gain of mixing         {found['over_alone']:+.3f} {interval(found['over_alone_ci95'])}",
    ]
    if found["classes"]:
        lines.append(f"{'first token, by class':<32}{'weight':>8}{'gain':>8}{'alone':>8}")
    lines += [
        f"{name:<32}{row['weight']:>8.3f}{row['gain']:>+8.3f}{row['alone']:>+8.3f}"
        for name, row in found["classes"].items()
    ]
    return lines


def pass_rates(tasks: Mapping[str, Any]) -> list[str]:
    """pass@k of held-out tasks with intervals, and pass@1 of each source where there are more."""
    lines = [f"{tasks['num_tasks']} tasks, {tasks['attempts']} attempts at each"]
    for row in tasks["pass_at"]:
        lines.append(f"{'pass@' + str(row['k']):<24}{row['pass']:>8.3f}   {interval(row['ci95'])}")
    if len(tasks["by_source"]) > 1:
        lines += [f"pass@1 of {name}: {share:.3f}" for name, share in tasks["by_source"].items()]
    return lines


def audit_table(found: Mapping[str, Mapping[str, Any]], together: str) -> str:
    """Shares of right and wrong answers that judges take for right, a line an attack."""
    judges = [name for name in found if name != together]
    judges += [together] if len(judges) > 1 else []
    attacks = list(found[together]["by_attack"])

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    rows = [["taken for right", *judges]]
    rows += [["true continuation", *(share(found[j]["gold"]) for j in judges)]]
    rows += [[a, *(share(found[j]["by_attack"].get(a)) for j in judges)] for a in attacks]
    rows += [
        ["verdicts missing", *(f"{found[j]['missing']} of {found[j]['asked']}" for j in judges)]
    ]
    return columns(rows)


def tasks_table(facts: Mapping[str, Any]) -> str:
    """Scores of downstream tasks without and with a thought; ± is the harness' standard error."""

    def cell(row: Mapping[str, Any], side: str) -> str:
        error = row[f"{side}_stderr"]
        spread = f" ±{error:.3f}" if isinstance(error, float) else ""
        return f"{row[side]:.3f}{spread}"

    header = f"{'task':<24}{'metric':<16}{'no think':>16}{'think':>16}{'change':>9}"
    lines = [header, "-" * len(header)]
    for task, metrics in facts["tasks"].items():
        for name, row in metrics.items():
            lines.append(
                f"{task:<24}{name:<16}{cell(row, 'no_think'):>16}{cell(row, 'think'):>16}"
                f"{row['change']:>+9.3f}"
            )
    lines.append(
        f"{facts['thoughts_per_question']} thoughts of at most {facts['thought_tokens']} tokens a "
        "question, one before an answer that is written"
    )
    return "\n".join(lines)


def soup_table(facts: Mapping[str, Any]) -> str:
    """Start, ingredients and soup: the cells of each, and the soup's loss less theirs."""
    used = {i["path"]: i["used"] for i in facts["ingredients"]}
    names = [
        f"{row['name']}{'' if used.get(row['name'], True) else ' (left out)'}"
        for row in facts["rows"]
    ]
    width = max(len(name) for name in names)
    header = (
        f"{facts['method'] + ' soup':<{width}}{'no think':>10}{'think':>8}{'gain':>8}  "
        f"{'95 % interval':<18}{'soup − this':>12}   95 % interval"
    )
    lines = [header, "-" * len(header)]
    for name, row in zip(names, facts["rows"], strict=True):
        cells = (
            f"{name:<{width}}{row['nll/no_think']:>10.3f}{row['nll/think']:>8.3f}"
            f"{row['gain/mean']:>+8.3f}  {interval(row['gain/ci95']):<18}"
        )
        if row["name"] != "soup":
            cells += f"{row['soup_minus_this']:>+12.3f}   {interval(row['soup_minus_this_ci95'])}"
        lines.append(cells.rstrip())
    lines.append(
        f"nats per token on {facts['num_docs']} held-out documents; soup − this: loss with thinking"
    )
    return "\n".join(lines)


def memory_table(found: Mapping[str, Any]) -> list[str]:
    """What memories bring back of what a reading window loses, beside the bound and the bar."""
    window = found["window"]
    names = (
        ("gain", "the memory"),
        ("longer", f"{found['longer_by']} tokens more of the page"),
        ("over_longer", "memory over these"),
        ("whole", "the whole context"),
    )
    lines = [f"{f'gain over {window} tokens':<34}{'nats a token':>12}  95 % interval"]
    lines += [
        f"{name:<34}{found[key]:>+12.3f}  {interval(found[f'{key}_ci95'])}" for key, name in names
    ]
    if found["recovered"] is not None:
        lines.append(
            f"{'of the lost context recovered':<34}{found['recovered']:>12.1%}  "
            f"{_shares(found['recovered_ci95'])}"
        )
    lines += [
        f"{name + ' in its place':<34}{row['gain']:>+12.3f}  {interval(row['gain_ci95'])}"
        for name, row in found["controls"].items()
    ]
    for name, row in found["by_class"].items():
        share = "" if row["of_oracle"] is None else f", {row['of_oracle']:.1%} of the best memory's"
        lines.append(
            f"{name:<34}{row['gain']:>+12.3f}  {interval(row['gain_ci95'])} a continuation{share}"
        )
    for key, name in (("by_lost_tokens", "tokens lost"), ("by_entropy", "entropy, nats")):
        if found[key]:
            lines.append(
                f"{name:<24}{'positions':>10}{'memory':>9}{'whole':>9}{'share':>9}  95 % of memory"
            )
        for row in found[key]:
            digits = 0 if key == "by_lost_tokens" else 2
            span = f"{row['low']:.{digits}f} … {row['high']:.{digits}f}"
            share = "" if row["recovered"] is None else f"{row['recovered']:.0%}"
            lines.append(
                f"{span:<24}{row['num_positions']:>10}{row['gain']:>+9.3f}{row['whole']:>+9.3f}"
                f"{share:>9}  {interval(row['gain_ci95'])}"
            )
    return lines


def pages_table(facts: Mapping[str, Any]) -> str:
    """Whole pages read with a carried memory, beside the window alone and everything."""
    names = {"window": "the window alone", "memory": "with a memory", "everything": "everything"}
    lines = [
        f"{facts['num_docs']} pages of up to {facts['longest_page']:,} tokens in pieces of "
        f"{facts['piece']}, behind {facts['window']} tokens and a memory of "
        f"{facts['memory_tokens']} at most",
        "",
        f"{'':<20}{'tokens':>9}{'bits a byte':>12}{'saved':>8}  {'95 % interval':<18}"
        f"{'KV bytes':>12}{'computed':>9}{'s/1,000':>9}",
    ]
    for arm, row in facts["arms"].items():
        saved = facts["saved"].get(arm, {})
        known = saved.get("bits_per_byte") is not None
        lines.append(
            f"{names[arm]:<20}{row['num_tokens']:>9,}{row['bits_per_byte']:>12.4f}"
            + (f"{saved['bits_per_byte']:>+8.4f}  " if known else " " * 10)
            + f"{interval(saved['ci95']) if known else '':<18}"
            f"{row['kv_bytes']:>12,}{row['computed_per_token']:>9.2f}"
            f"{row['seconds_per_1000']:>9.2f}"
        )
    if facts["recovered"] is not None:
        lines.append(f"of what everything saves the memory saves {facts['recovered']:.1%}")
    lines.append(
        f"memories: {facts['memory_tokens_mean']:.1f} tokens on average, written at "
        f"{facts['written_frac']:.0%} of the pieces' ends"
    )
    lines += ["", f"{'tokens of the page':<20}{'window':>10}{'memory':>10}{'everything':>12}"]
    for row in facts["curve"]:
        cells = [f"{row[arm]:.4f}" if row[arm] is not None else "–" for arm in names]
        span = f"{row['from']} … {row['to']}"
        lines.append(f"{span:<20}{cells[0]:>10}{cells[1]:>10}{cells[2]:>12}")
    return "\n".join(lines)


def next_token_table(result: Mapping[str, Any]) -> list[str]:
    """Accuracy of the arg-max by tiers of entropy, and calibration, of the next token."""
    lines = [
        f"{'next token':<24}{'tokens':>8}{'no think':>10}{'think':>8}{'change':>8}  95 % interval"
    ]
    for row in result["accuracy"]:
        above = row["entropy_above"]
        name = f"accuracy, entropy > {above}" if above else "accuracy"
        if not row["num_positions"]:
            lines.append(f"{name:<24}{0:>8}")
            continue
        lines.append(
            f"{name:<24}{row['num_positions']:>8}{row['no_think']:>10.1%}{row['think']:>8.1%}"
            f"{row['change']:>+8.1%}  {_shares(row['change_ci95'])}"
        )
    found = result["calibration"]
    for key, name in (("ece", f"ECE, {found['num_bins']} equal bins"), ("brier", "Brier score")):
        lines.append(
            f"{name:<24}{found['no_think']['num_predictions']:>8}{found['no_think'][key]:>10.3f}"
            f"{found['think'][key]:>8.3f}{found[key + '_change']:>+8.3f}  "
            f"{interval(found[key + '_change_ci95'])}"
        )
    return lines


def value_table(result: Mapping[str, Any]) -> list[str]:
    """The bound of K thoughts, bits per byte, net gain, and what the thoughts look like."""
    lines = []
    for row in result["bound"][1:]:
        lines.append(
            f"{'bound of ' + str(row['thoughts']) + ' thoughts':<23}{row['nll/think']:.3f} nats "
            f"per token, gain {row['gain']:+.3f} {interval(row['gain_ci95'])}"
        )
    bits, net, thoughts = result["bits_per_byte"], result["net_gain"], result["thoughts"]
    quantiles, opening = thoughts["quantiles"], thoughts["opening"]
    variety = [f"{v:.2f}" if v is not None else "–" for v in thoughts["distinct"].values()]
    lines += [
        f"bits per byte          {bits['no_think']:.3f} without thinking, {bits['think']:.3f} "
        f"with, saved {bits['saved']:+.3f} {interval(bits['saved_ci95'])}",
        f"net gain               {net['net']:+.2f} bits a thought {interval(net['net_ci95'])} "
        f"at {net['bits_per_thought_token']:g} bits a thought token"
        + ("" if net["break_even"] is None else f"; 0 at {net['break_even']:.3g}"),
        f"length of thoughts     {quantiles['10']:.0f} … {quantiles['50']:.0f} … "
        f"{quantiles['90']:.0f} tokens (10, 50, 90 %); distinct 1-, 2-, 3-grams "
        + ", ".join(variety),
    ]
    if opening["share"] is not None:
        lines.append(
            f"most common opening    {opening['text']!r}, {opening['share']:.0%} of the thoughts"
        )
    for row in thoughts["leak"]:
        if row["other"] is not None:
            lines.append(
                f"{'said ahead, ' + str(row['n']) + '-grams':<23}{row['own']:.1%} of the "
                f"continuation, {row['other']:.1%} of another's, difference "
                f"{row['own_minus_other']:+.1%} {_shares(row['own_minus_other_ci95'])}"
            )
    return lines


def classes_table(classes: Mapping[str, Any], reading: Mapping[str, Any]) -> list[str]:
    """Gain by token class, of the token right after the thought, with the controls' gains.

    On the right, the plain loss on all tokens of the class, and its change since the start.
    """
    changes = reading.get("class_changes", {})
    names = list(dict.fromkeys(name for row in classes.values() for name in row["controls"]))
    header = (
        f"{'class':<24}{'tokens':>7}{'no think':>10}{'think':>8}{'gain':>8}  {'95 % interval':<18}"
        f"{'of oracle':>9}" + "".join(f"{name:>11}" for name in names)
    )
    header += f"{'whole pages':>14}" + (f"{'change':>9}" if changes else "")
    lines = [header, "-" * len(header)]
    for name, row in classes.items():
        share = row["oracle_fraction"]
        cells = [row["controls"].get(n, {}).get("gain") for n in names]
        lines.append(
            f"{name:<24}{row['num_tokens']:>7}{row['nll/no_think']:>10.3f}{row['nll/think']:>8.3f}"
            f"{row['gain']:>+8.3f}  {interval(row['gain_ci95']):<18}"
            f"{'' if share is None else f'{share:.1%}':>9}"
            + "".join(f"{'' if cell is None else f'{cell:+.3f}':>11}" for cell in cells)
            + f"{reading['classes'][name]:>14.3f}"
            + (f"{changes[name]:>+9.3f}" if changes else "")
        )
    return lines


def interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"[{low:+.3f}, {high:+.3f}]"


def _shares(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"[{low:+.1%}, {high:+.1%}]"


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "thinking helps"
    return "thinking hurts" if high < 0 else "no difference shown"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
