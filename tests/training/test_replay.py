"""Contexts that come back: how often, which, under which numbers, and that fresh ones come once."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import same_shards, tiny_run
from test_config import minimal

from rntp.config import Config
from rntp.data.ordinals import FIRST_REPLAY, fresh_contexts, progress
from rntp.errors import CheckpointError, ConfigError
from rntp.run.log import read_metrics, read_rollouts
from rntp.trainer import Trainer
from rntp.training import replay as module
from rntp.training.replay import Replay
from rntp.types import Context, Page

ONE = "data.replay_docs=1"


class Stream:
    """Contexts by ordinal; document and visit are those of passes over three documents."""

    def __getitem__(self, ordinal: int) -> Context:
        return Context(ordinal, f"doc{ordinal % 3}", torch.tensor([ordinal]), visit=ordinal // 3)


CORPUS = SimpleNamespace(train=Stream())


def config(*overrides: str) -> Config:
    """Four contexts a step."""
    return Config.parse(minimal(), ["data.docs_per_step=4", *overrides])


def page(context: Context) -> Page:
    zeros = torch.zeros(2)
    before = torch.zeros(2, 2, dtype=torch.int64)
    length = len(context)
    return Page(
        context.ordinal, context.visit, context.replay_of, length, (3, 5), before, zeros, zeros
    )


def observed(useful: dict[int, float]) -> Replay:
    """Thoughts whose gains lie ±useful around 1, which is that standard deviation."""
    found = Replay(config(ONE))
    for ordinal, spread in useful.items():
        gain_PG = torch.tensor([[1 - spread, 1 + spread]] * 2)
        found.observe([page(CORPUS.train[ordinal])], gain_PG)
    return found


def test_fresh_ordinals_come_once_each() -> None:
    some = config(ONE)
    assert [fresh_contexts(some, n) for n in range(5)] == [0, 4, 7, 10, 13]
    assert [fresh_contexts(config(), n) for n in range(4)] == [0, 4, 8, 12]
    assert some.placement.policy.get("ramp_steps") == 0
    steps = 10
    some, plain = (
        config(*more, "placement.policy={tiers: {ramp_steps: 10}}") for more in ([ONE], [])
    )
    assert progress(some, fresh_contexts(some, steps)) == 1.0
    assert progress(plain, 6) == 6 / (4 * steps)
    # A later visit is as far on as the step that it is made in.
    assert progress(some, FIRST_REPLAY + 3) == 3 / steps
    two = config("data.replay_docs=2", "placement.policy={tiers: {ramp_steps: 10}}")
    assert progress(two, FIRST_REPLAY + 2 * 3 + 1) == 3 / steps


def test_what_lies_further_apart_comes_back_in_proportion() -> None:
    """Of usefulness 3 and 1: (3 + 0.06) of (4 + 0.12)."""
    found = observed({5: 3.0, 7: 1.0})
    drawn = [found.contexts(CORPUS, step)[0].replay_of for step in range(2, 4002)]
    wanted = (3 + 0.06) / (4 + 0.12)
    share = drawn.count(5) / 4000
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / 4000) ** 0.5
    assert drawn.count(5) + drawn.count(7) == 4000
    again = observed({7: 1.0, 5: 3.0})  # whatever the order in which they came
    assert drawn[:50] == [again.contexts(CORPUS, step)[0].replay_of for step in range(2, 52)]


def test_a_visit_has_its_own_ordinal_and_counts() -> None:
    found = observed({4: 1.0})
    assert Replay(config(ONE)).contexts(CORPUS, 2) == []
    [first] = found.contexts(CORPUS, 2)
    assert (first.ordinal, first.replay_of, first.visit) == (FIRST_REPLAY + 1, 4, 2)
    assert first.document_id == "doc1"
    assert first.token_ids.tolist() == [4]
    found.observe([page(first)], torch.tensor([[0.0, 6.0], [0.0, 2.0]]))
    [second] = found.contexts(CORPUS, 3)
    assert (second.ordinal, second.replay_of, second.visit) == (FIRST_REPLAY + 2, 4, 3)
    # Half of 1, and half of the mean of 3 and 1.
    assert float(found.tensors()["useful"].max()) == 0.5 * 1 + 0.5 * 2
    assert (found.tensors()["ordinals"] >= 0).sum() == 1


def test_contexts_of_a_step_differ_and_are_no_more_than_are_known() -> None:
    found = Replay(config("data.replay_docs=3"))
    gain_PG = torch.tensor([[0.0, 1.0]] * 8)
    found.observe([page(CORPUS.train[n]) for n in range(4)], gain_PG)
    for step in range(2, 50):
        drawn = found.contexts(CORPUS, step)
        assert len({c.replay_of for c in drawn}) == 3
        first = FIRST_REPLAY + 3 * (step - 1)
        assert [c.ordinal for c in drawn] == [first, first + 1, first + 2]
    few = Replay(config("data.replay_docs=3"))
    few.observe([page(CORPUS.train[0])], gain_PG[:2])
    assert len(few.contexts(CORPUS, 2)) == 1


def test_memory_is_bounded_and_the_least_useful_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CAPACITY", 3)
    found = observed({0: 2.0, 1: 0.5, 2: 3.0, 9: 1.0})
    assert sorted(found.tensors()["ordinals"].tolist()) == [0, 2, 9]
    restored = Replay(config(ONE))
    restored.restore({name: t.clone() for name, t in found.tensors().items()})
    steps = range(2, 40)
    one, other = ([r.contexts(CORPUS, n)[0].replay_of for n in steps] for r in (found, restored))
    assert one == other
    assert len(set(one)) > 1


def test_groups_that_agree_are_seldom_seen_again() -> None:
    """What all thoughts solve and what none does: the same gain for all of a group."""
    found = Replay(config(ONE))
    gain_PG = torch.tensor([[2.0, 2.0]] * 2 + [[-1.0, -1.0]] * 2 + [[0.0, 1.0]] * 2)
    found.observe([page(CORPUS.train[n]) for n in range(3)], gain_PG)
    drawn = [found.contexts(CORPUS, step)[0].replay_of for step in range(2, 1002)]
    assert drawn.count(2) > 920  # 0.51 of 0.53
    assert {0, 1} <= set(drawn)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.replay_docs=4"], "leaves no fresh context; lower it"),
        (
            [ONE, "thought.thoughts_per_position=1", "objective.advantage=none"],
            "set thought.thoughts_per_position to 2 or more",
        ),
    ],
)
def test_what_cannot_be_is_explained(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


def test_a_run_reads_fresh_pages_once_and_thinks_anew_at_the_others(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    """Three contexts a step, one of them seen before: 3 + 2 + 2 + 2 fresh. And the same after a
    resume, to the bit."""
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "whole")
    raw["evaluation"] = {"docs": 0}
    raw["checkpoint"] = {"every_steps": 2, "keep": 9}

    def run(folder: Path, *overrides: str) -> list[dict]:
        options = [ONE, f"run.dir={folder}", *overrides]
        Trainer(Config.parse(raw, options)).fit()
        return [
            {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
            for row in read_metrics(folder)
        ]

    metrics = run(tmp_path / "whole")
    rows = {step: read_rollouts(tmp_path / "whole", step) for step in range(1, 5)}
    order = [list(dict.fromkeys(r["ordinal"] for r in rows[step])) for step in rows]
    fresh = [n for step in order for n in step if n < FIRST_REPLAY]
    assert fresh == list(range(9))
    assert [n for step in order for n in step if n >= FIRST_REPLAY] == [
        FIRST_REPLAY + n for n in (1, 2, 3)
    ]
    assert [row["data/visits_max"] >= 1 for row in metrics] == [False, True, True, True]
    assert [row["data/ordinal_first"] for row in metrics] == [0, 3, 5, 7]
    for step in (2, 3, 4):
        again = [r for r in rows[step] if "replay_of" in r]
        [source] = {r["replay_of"] for r in again}
        earlier = [r for s in range(1, step) for r in rows[s] if r["ordinal"] == source]
        assert {r["document_id"] for r in again} == {earlier[0]["document_id"]}
        assert [r["thought_ids"] for r in again] != [r["thought_ids"] for r in earlier]

    copy = shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "step_00000004")
    assert run(copy) == metrics
    assert {step: read_rollouts(copy, step) for step in rows} == rows
    last = "checkpoints/step_00000004"
    kept = {"weights", "moments", "replay", "alarms", "gate"}
    assert same_shards(tmp_path / "whole" / last, copy / last) == kept
    with pytest.raises((CheckpointError, ConfigError)):
        run(copy, "data.replay_docs=2", "run.steps=5")
