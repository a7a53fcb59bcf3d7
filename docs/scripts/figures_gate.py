"""Tables of where to think: whole pages under rules."""

import json
from collections.abc import Callable
from pathlib import Path

PAGES = Path(__file__).parents[2] / "experiments/planted/results/pages/pages.json"
SHOWN = ("never", "entropy", "gate", "in hindsight", "where the corpus knows one")


def planted_pages() -> str:
    """Write what rules of where to think make of whole planted pages."""
    found = json.loads(PAGES.read_text(encoding="utf-8"))
    lines = [
        "| a thought comes | bound | thought tokens a token | bits a byte saved |",
        "| --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        if row["rule"] in SHOWN:
            bound = "" if row["bound"] is None else f"{row['bound']:.3g}"
            low, high = (f"{x:+.4f}".replace("-", "−") for x in row["saved_ci95"])
            saved = f"{row['saved']:+.4f}".replace("-", "−")
            lines.append(
                f"| {row['rule']} | {bound} | {row['thought_tokens_per_token']:.3f} | "
                f"{saved} [{low}, {high}] |"
            )
    pages, tokens = found["num_docs"], f"{found['num_tokens']:,}"
    never = next(row for row in found["rows"] if row["rule"] == "never")["bits_per_byte"]
    lines += [
        "",
        f"One seed; {pages} held-out pages, {tokens} tokens, {never:.4f} bits a byte without a "
        f"thought; AUC of the gate {found['gate']['auc']:.2f}.",
    ]
    return "\n".join(lines)


MAKERS: dict[str, Callable[[], str]] = {"planted_pages": planted_pages}
