"""The golden run: equal to the bit where it was written, close to it elsewhere."""

import copy
import json
import sys
from pathlib import Path

PLANTED = Path(__file__).parents[2] / "experiments" / "planted"
sys.path.insert(0, str(PLANTED))

import golden  # noqa: E402


def test_the_golden_run_is_as_it_was(tmp_path: Path) -> None:
    wanted = json.loads(golden.GOLDEN.read_text())
    lines = golden.run(tmp_path)
    assert len(lines) == len(wanted["steps"]) == 20
    assert golden.differences(wanted, lines) == []

    # One more unit in the last place of one number is seen on the machine that wrote it …
    other = copy.deepcopy(lines)
    other[13]["loss/total"] *= 1 + 1e-15
    here = {"machine": golden.machine(), "steps": lines}
    assert golden.differences(here, lines) == []
    assert [text[:20] for text in golden.differences(here, other)] == ["step 14, loss/total:"]
    # … and elsewhere what rounding cannot explain.
    there = {"machine": {"torch": "0.1"}, "steps": lines}
    assert golden.differences(there, other) == []
    other[0]["reward/mean"] += 0.05
    other[15]["nll/think"] += 2.0
    found = golden.differences(there, other)
    assert len(found) == 2
    assert found[0].startswith("step 1, reward/mean")
    assert found[1].startswith("nll/think, mean of the last ten steps")
