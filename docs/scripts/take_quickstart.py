"""Keep what `make quickstart` printed: `make quickstart | tee LOG; take_quickstart.py LOG`.

README and the first page show it (`blocks.py`). Times, rates and the machine's load are left out:
other work may run beside it.
"""

import json
import re
import sys
from pathlib import Path

RESULT = Path(__file__).parents[2] / "experiments/quickstart/result.json"
KEPT = (
    "wrote ",
    "quickstart: ",
    "held-out",
    "step ",
    "saved ",
    "loss ",
    "gain ",
    "control: ",
    "thinking over",
    "all of the page",
    "report: ",
    "---",
    "…",
)
TIMES = re.compile(r"(  \d+ tok/s)?  [\d.]+ s  eta \S+$")
ROW = re.compile(r"(loss \w+ thinking|gain of thinking)\s+(\S+)\s+(\S+)\s+(\S+)\s+\[(\S+), (\S+)\]")
BESIDE = re.compile(
    r"(\d+ tokens more of the page|thinking over these|control: \w+|all of the page before)"
    r"\s+(\S+)\s+(\S+)\s+\[(\S+), (\S+)\]"
)
AFTER = re.compile(r"gain after training: 95 % interval \[(\S+), (\S+)\]")


def shortened(text: str) -> list[str]:
    """Keep the lines that matter, of the steps the first two and the last."""
    lines = [line.rstrip() for line in text.splitlines()]
    lines = [TIMES.sub("", line) for line in lines if line.startswith(KEPT) or BESIDE.match(line)]
    steps = [line for line in lines if line.startswith("step ")]
    left_out = set(steps[2:-1])
    kept = [line for line in lines if line not in left_out]
    saves = [line for line in kept if line.startswith("saved ")]
    kept = [line for line in kept if line not in saves[:-1]]
    if left_out:
        kept.insert(kept.index(steps[1]) + 1, "…")
    return kept


def rows(text: str) -> dict[str, dict[str, object]]:
    """Read the table of before and after, nats a token."""
    found = {}
    for line in text.splitlines():
        if match := ROW.match(line):
            before, after, change, low, high = map(float, match.groups()[1:])
            value = {"value": change, "ci95": [low, high]}
            found[match[1]] = {"before": before, "after": after, "change": value}
    return found


def beside(text: str) -> dict[str, dict[str, object]]:
    """Read what else could stand in a memory's place: gains, and the interval after training."""
    found = {}
    for line in text.splitlines():
        if match := BESIDE.match(line):
            before, after, low, high = map(float, match.groups()[1:])
            found[match[1]] = {"before": before, "after": {"value": after, "ci95": [low, high]}}
    return found


def main() -> None:
    """Write the result."""
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    after = AFTER.search(text)
    interval = [float(bound) for bound in after.groups()] if after else []
    facts = {
        "lines": shortened(text),
        "rows": rows(text),
        "gain_ci95_after": interval,
        "beside": beside(text),
    }
    if len(facts["rows"]) != 3:
        sys.exit(f"{sys.argv[1]} has no table of before and after: is the run finished?")
    RESULT.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
