"""What is printed of where and how often to think: the gate, rules, thoughts read together."""

from collections.abc import Mapping, Sequence
from typing import Any

from rntp.evaluation.frontier import MUCH
from rntp.show import columns, interval


def gate_table(found: Mapping[str, Any]) -> str:
    """How good a gate is on held-out pages: expected against measured gain, a line a decile."""
    auc = "–" if found["auc"] is None else f"{found['auc']:.2f}"
    rows = [["gain expected, nats a token", "±", "measured", "positions"]]
    for row in found["deciles"]:
        numbers = (f"{row['expected']:+.3f}", f"{row['error']:.3f}", f"{row['measured']:+.3f}")
        rows.append([*numbers, str(row["positions"])])
    return "\n".join(
        [
            f"{found['fitted_to']} positions fitted to, {found['positions']} of "
            f"{found['documents']} held-out documents measured",
            columns(rows),
            f"it tells where thinking helps from where it does not: AUC {auc}",
            f"gain a token: {found['always']:+.4f} thinking everywhere, {found['gated']:+.4f} "
            f"where the gate says so ({found['thought_at']:.0%} of the places, price "
            f"{found['price']:g} nats a thought token), {found['best']:+.4f} where it did help",
            *_lengths(found),
            *_apart(found),
        ]
    )


def _apart(found: Mapping[str, Any]) -> list[str]:
    """Say so where pages that the gate was fitted to gain other than those that it was not."""
    apart = abs(found["fitted_gain"] - found["always"])
    if apart <= 3 * (found["fitted_error"] ** 2 + found["always_error"] ** 2) ** 0.5:
        return []
    advice = "" if found["unseen"] else "; --unseen fits it to pages that the model does not know"
    return [
        f"the pages that it was fitted to gain {found['fitted_gain']:+.4f} ± "
        f"{found['fitted_error']:.4f} a token, these {found['always']:+.4f} ± "
        f"{found['always_error']:.4f}, so it expects the wrong amounts{advice}"
    ]


def _lengths(found: Mapping[str, Any]) -> list[str]:
    """What a gate that knows several lengths of thoughts gains by them."""
    by = found["by_length"]
    if by is None:
        return []
    shares = ", ".join(f"{name} at {share:.0%}" for name, share in by["share"].items())
    return [
        f"as long as pays best: {by['gated']:+.4f} a token for {by['tokens']:.2f} thought tokens a "
        f"place, against {found['gated']:+.4f} for {found['tokens']:.2f} (tokens of a thought: "
        f"{shares} of the places)"
    ]


def frontier_table(facts: Mapping[str, Any]) -> str:
    """What rules of where to think make of whole pages."""
    lines = [
        f"{facts['num_docs']} pages, {facts['num_tokens']:,} tokens; thoughts at "
        f"{facts['positions']:,} places, each judged by the next {facts['horizon']} tokens",
        "",
        f"{'a thought comes':<28}{'bound':>8}{'thoughts':>10}{'thought':>9}{'computed':>10}"
        f"{'bits a byte':>13}{'saved':>9}  95 % interval",
        f"{'':<28}{'':>8}{'a token':>10}{'tokens':>9}",
    ]
    for row in facts["rows"]:
        bound = "" if row["bound"] is None else f"{row['bound']:.3g}"
        lines.append(
            f"{row['rule']:<28}{bound:>8}{row['thoughts_per_token']:>10.3f}"
            f"{row['thought_tokens_per_token']:>9.3f}{row['computed_per_token']:>10.2f}"
            f"{row['bits_per_byte']:>13.4f}{row['saved']:>+9.4f}  {interval(row['saved_ci95'])}"
        )
    lines += _classes_of_rules(facts["rows"])
    if (gate := facts["gate"]) is None:
        return "\n".join([*lines, "", "no gate: the run has seen too few positions to learn one"])
    said = "–" if gate["auc"] is None else f"{gate['auc']:.3f}"
    if gate["auc_much"] is not None:
        said += f", that it helps by {MUCH} nats a token {gate['auc_much']:.3f}"
    if gate["auc_known"] is not None:
        said += f", for places where the corpus knows a thought {gate['auc_known']:.3f}"
    lines += ["", f"gate: AUC {said}; gain by tenths of what it expects, nats a token"]
    for name in ("expected", "measured"):
        cells = "".join(f"{tenth[name]:>+8.3f}" for tenth in gate["deciles"])
        lines.append(f"{name:<10}{cells}")
    return "\n".join(lines)


def parallel_table(facts: Mapping[str, Any]) -> str:
    """What several thoughts of a position gain together, by the tokens that they take."""
    ways = [name for name in facts["rows"][0] if name not in ("length", "thoughts", "tokens")]
    lines = [
        f"{facts['num_docs']} held-out pages; gain in nats a token, 95 % interval over documents",
        "",
        f"{'thoughts':>8}{'closed after':>14}{'tokens':>8}" + "".join(f"{w:>26}" for w in ways),
    ]
    for row in facts["rows"]:
        cells = "".join(
            f"{row[way]['gain']:>+9.4f} {interval(row[way]['ci95']):>16}" for way in ways
        )
        lines.append(f"{row['thoughts']:>8}{row['length']:>14}{row['tokens']:>8.1f}{cells}")
    return "\n".join(lines)


def _classes_of_rules(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the gate, the policy's own choice and the places that the corpus knows do to each class
    of a made corpus."""
    shown = [
        r for r in rows if r["rule"] in ("gate", "the policy itself", "where the corpus knows one")
    ]
    if not shown or shown[0]["by_class"] is None:
        return []
    names = list(shown[0]["by_class"])
    lines = ["", "gain by class, nats a token of it, those without a thought included"]
    lines.append(f"{'':<36}" + "".join(f"{name[:16]:>18}" for name in names))
    for row in shown:
        bound = "" if row["bound"] is None else f"{row['bound']:.3g}"
        cells = "".join(f"{row['by_class'][name]['gain']:>+18.4f}" for name in names)
        lines.append(f"{row['rule']:<28}{bound:>8}{cells}")
    return lines
