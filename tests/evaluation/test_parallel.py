"""Several thoughts of a position read together: by hand, and of a run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_run

from rntp import cli
from rntp.config import Config
from rntp.evaluation.parallel import average, by_weight, surest, together, weighed
from rntp.trainer import Trainer


def thought(*p: float, confidence: float = 0.5, tokens: int = 4, **more: object) -> dict:
    return {
        "logp_think": [math.log(x) for x in p],
        "first": {"confidence": confidence},
        "num_tokens": tokens,
        **more,
    }


def test_ways_by_hand() -> None:
    at = {"logp_empty": [math.log(0.5)] * 2}
    right, wrong = thought(0.8, 0.9, confidence=0.6), thought(0.2, 0.1, confidence=0.9)
    assert np.exp(average(at, [right, wrong])) == pytest.approx([0.5, 0.5])
    # Behind the first token, which the right one foretold, that one counts four times as much.
    assert np.exp(weighed(at, [right, wrong])) == pytest.approx([0.5, 0.8 * 0.9 + 0.2 * 0.1])
    whole = weighed(at, [right, wrong]).sum()
    assert math.exp(whole) == pytest.approx((0.8 * 0.9 + 0.2 * 0.1) / 2)  # the bound of K thoughts
    # The model is surest behind the wrong one: it judges itself, and may be mistaken.
    assert surest(at, [right, wrong]).tolist() == wrong["logp_think"]


def test_by_weight_is_the_mixture_of_one_and_leaves_out_what_is_not_trusted() -> None:
    at = {"logp_empty": [math.log(0.5)]}

    def mixing(alone: float, weight: float) -> dict:
        mixed = weight * alone + (1 - weight) * 0.5
        return thought(mixed, weight=[weight], logp_alone=[math.log(alone)])

    good, ignored = mixing(0.9, 0.75), mixing(0.1, 1e-9)
    assert by_weight(at, [good]).tolist() == pytest.approx(good["logp_think"])
    assert by_weight(at, [good, ignored]) == pytest.approx(by_weight(at, [good]), abs=1e-6)
    both = math.exp(by_weight(at, [mixing(0.9, 0.6), mixing(0.3, 0.3)])[0])
    assert both == pytest.approx(0.6 * (0.6 * 0.9 + 0.3 * 0.3) / 0.9 + 0.4 * 0.5)
    assert math.exp(by_weight(at, [mixing(0.9, 1.0)])[0]) == pytest.approx(0.9)


def page(*thoughts: dict) -> dict:
    return {"positions": [{"logp_empty": [math.log(0.5)] * 2, "thoughts": list(thoughts)}]}


def test_the_table_pairs_many_short_with_few_long() -> None:
    long = [page(*(thought(0.8, 0.8, tokens=8) for _ in range(3))) for _ in range(2)]
    short = [page(*(thought(p, p, tokens=2) for p in (0.9, 0.1, 0.6))) for _ in range(2)]
    rows = together({"2": short, "full": long}, seed=0)
    assert [(r["length"], r["thoughts"], r["tokens"]) for r in rows] == [
        ("2", 1, 2.0),
        ("2", 2, 4.0),
        ("full", 1, 8.0),
        ("full", 2, 16.0),
    ]
    one = rows[0]  # the mean over three thoughts, by every way
    single = np.mean([math.log(p / 0.5) for p in (0.9, 0.1, 0.6)])
    for way in ("average", "weighed", "surest"):
        assert one[way]["gain"] == pytest.approx(single)
        assert one[way]["ci95"] == pytest.approx([single, single])
    assert rows[1]["average"]["gain"] == pytest.approx(0.0)  # (0.9 + 0.1) / 2, twice
    assert rows[1]["weighed"]["gain"] > 0
    assert "by weight" not in one


def test_the_command_reads_thoughts_together(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 1
    raw["evaluation"] = {"docs": 3}
    config = Config.parse(raw)
    Trainer(config).fit()
    capsys.readouterr()
    longest = config.thought.thought_tokens
    out = tmp_path / "parallel.json"
    asked = ["eval", str(tmp_path / "run"), "--parallel", "4", "--lengths", "1", "--out", str(out)]
    cli.main(asked)
    assert "closed after" in capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert {(r["length"], r["thoughts"]) for r in rows} == {
        (length, count) for length in ("1", "full") for count in (1, 2, 4)
    }
    by = {(r["length"], r["thoughts"]): r for r in rows}
    assert by["1", 4]["tokens"] == 4
    assert by["full", 1]["tokens"] <= longest
    # A mixture of predictions is never below the mean of their log-probs.
    for length in ("1", "full"):
        gains = [by[length, count]["average"]["gain"] for count in (1, 2, 4)]
        assert gains == sorted(gains)
    for wrong, said in (
        (["--lengths", "1"], "--lengths goes with --parallel"),
        (["--parallel", "4", "--lengths", str(longest)], "numbers of tokens from 1 to"),
        (["--parallel", "0"], "1 or more"),
        (["--parallel", "4", "--pages", "2"], "give one of them"),
        (["--parallel", "4", "--stride", "2"], "go with --pages"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["eval", str(tmp_path / "run"), *wrong])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
