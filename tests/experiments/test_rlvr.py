"""The comparison of arms through RLVR: its tasks, its configs, and its table."""

import re
import sys
from pathlib import Path

import pytest
from conftest import tiny_tokenizer

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.model.tokenizer import add_marker, decode

RLVR = Path(__file__).parents[2] / "experiments" / "rlvr"
sys.path.insert(0, str(RLVR))

import compare  # noqa: E402
import make_tasks  # noqa: E402


def test_answers_are_what_the_records_say() -> None:
    found = [made for index in range(80) if (made := make_tasks.task(index))]
    assert len(found) > 75
    hops = set()
    for made in found:
        after = dict(re.findall(r"^- (\S+) [>=] (\S+)$", made["prompt"], re.MULTILINE))
        asked = re.search(r"(\w+) (?:after|of) (\w+) is$", made["prompt"])
        assert asked is not None
        entry, steps = asked[2], int(made["kind"].split(", ")[1][0])
        for _ in range(steps):
            entry = after[entry]
        assert entry == made["answer"]
        hops.add(steps)
    assert hops == {2, 3, 4}
    assert make_tasks.task(3) == make_tasks.task(3)


def test_every_arm_is_a_config_of_as_many_flop() -> None:
    spent = {}
    for arm, (file, own) in compare.FIRST.items():
        overrides = [f"{name}={value}" for name, value in {**compare.COMMON, **own}.items()]
        spec = f"model.spec={RLVR.parent / 'planted/base'}"
        config = Config.load(RLVR.parent / "methods" / file, [*overrides, spec])
        spent[arm] = compare.step_cost("flop", config) * config.run.steps
    assert max(spent.values()) < 1.2 * min(spent.values()), spent
    config = Config.load(RLVR / "rlvr.yaml")
    assert config.data.has_tasks
    assert (config.objective.ntp_weight, config.objective.continuation_weight) == (0, 0)


def test_the_gyms_config_reads_its_tasks() -> None:
    pytest.importorskip("reasoning_gym")
    config = Config.load(RLVR / "gym.yaml", ["data.context_tokens=600", "reward.horizon=9"])
    tokenizer = tiny_tokenizer()
    for marker in config.model.markers:
        add_marker(tokenizer, marker)
    train = open_corpus(config, open_data(config), tokenizer).train
    text = decode(tokenizer, train[0].token_ids[: -config.reward.horizon])
    assert re.search(r"Answer: -3\n\nQuestion: .*: \d [+-] \d =\n$", text)


def test_the_table_ranks_before_and_after() -> None:
    def row(arm: str, before: float, after: float) -> dict:
        sides = {}
        for name, rate in (("before", before), ("after", after)):
            sides[name] = {"pass@1": rate, "pass@8": rate, "by task": [round(8 * rate)] * 4}
        return {"arm": arm, "seed": 0, "tflop before": 0.0, "tflop of RLVR": 1.0, **sides}

    rows = [row("base", 0.25, 0.75), row("RNTP", 0.5, 0.5)]
    lines = compare.table(rows).splitlines()
    assert lines[2].startswith("| base | 1 | 25.0% [25.0%, 25.0%]")
    assert "| 2 | 1 | 0.00 | 1.00 |" in lines[2]  # last before, first after
    assert "| 1 | 2 | 0.00 | 1.00 |" in lines[3]
    assert compare.paired(rows) == ["- RNTP: -25.0% [-25.0%, -25.0%], 1 seeds"]
