"""Thoughts that call tools by vLLM: in rounds, each to the end of a thought or to a call."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_calling import MARKERS, called, context, load, place, same, thoughts_of, words
from test_vllm_engine import config_of, distances, opened
from vllm_scripted import Scripted

from rntp.rollout.vllm.child import Frame
from rntp.types import Thought

BUDGET = 40


class Busy(Scripted):
    """Opens and closes many calls of what `call` spells, and some thoughts."""

    def __init__(self, call: list[int], tool_ids: tuple[int, ...], close: int) -> None:
        super().__init__()
        self._call, self._tool_ids, self._close = call, tool_ids, close
        self._left: list[int] = []

    def _draw(
        self, ids: torch.Tensor, seed: int, budget: int, facts: dict
    ) -> list[tuple[int, float]]:
        self._left = []
        return super()._draw(ids, seed, budget, facts)

    def _choose(self, logp: torch.Tensor, noise: torch.Generator) -> int:
        if self._left:
            return self._left.pop(0)
        chance = float(torch.rand(1, generator=noise))
        opening, closing = self._tool_ids[:2]
        if chance < 0.4:
            self._left = [*self._call, closing]
            return opening
        if chance < 0.5:
            return closing  # of no call
        return self._close if chance < 0.6 else super()._choose(logp, noise)


@pytest.fixture
def drawn(
    model_folders: dict[str, Path], tmp_path: Path
) -> tuple[list[Thought], list[Frame], torch.Tensor, tuple[int, ...]]:
    """Thoughts, what the child was asked, and how far its log-probs lie from the trainer's."""
    model = load(model_folders["llama"])
    config = config_of(model_folders, tmp_path, f"thought.thought_tokens={BUDGET}")
    scripted = Busy(words(model, "shout a"), model.tool_ids, model.think_close_id)
    engine = opened(model, config, scripted)
    with called(model) as tools:
        engine.tools = tools
        rollouts = engine.sample([context(0), context(1, 17)], place)
    engine.close()
    far = distances(model, rollouts, config.thought.temperature)
    return thoughts_of(rollouts), scripted.of("sample"), far, model.tool_ids


def test_results_are_spliced_and_thoughts_go_on(
    drawn: tuple[list[Thought], list[Frame], torch.Tensor, tuple[int, ...]],
) -> None:
    thoughts, frames, far, (_, closing, result, end) = drawn
    assert far.max() < 1e-5
    assert len(frames) > 2
    answered = [t for t in thoughts if t.num_given]
    assert len(answered) > 5
    assert max(len(t.calls) for t in thoughts) > 2  # one more than is answered
    assert {c.failure for t in thoughts for c in t.calls} == {"", "too_many_calls"}
    assert {c.result for t in thoughts for c in t.calls if not c.failure} == {"A!"}
    for thought in thoughts:
        ids, given = thought.sampled_ids.tolist(), thought.given.tolist()
        assert len(ids) - sum(given) <= BUDGET
        assert thought.closed or len(ids) - sum(given) == BUDGET
        begins = [n for n, id_ in enumerate(ids) if id_ == result]
        assert len(begins) == sum(not c.failure for c in thought.calls) <= 2
        for n in begins:  # behind the call, to its own end
            assert ids[n - 1] == closing
            assert all(given[n : ids.index(end, n) + 1])
            assert not given[n - 1]


def test_each_round_has_a_seed_of_its_own_and_what_is_left_of_the_budget(
    drawn: tuple[list[Thought], list[Frame], torch.Tensor, tuple[int, ...]],
) -> None:
    thoughts, frames, _, (_, closing, *_) = drawn
    seeds = [int(seed) for frame in frames for seed in frame.arrays["seed"]]
    assert len(set(seeds)) == len(seeds)
    assert all(closing in frame.facts["stops"] for frame in frames)
    assert (frames[0].arrays["budget"] == BUDGET).all()
    for before, after in pairwise(frames):
        assert len(after.arrays["seed"]) <= len(before.arrays["seed"])
        assert after.arrays["budget"].max() < before.arrays["budget"].max()
    assert sum(t.num_given > 0 for t in thoughts) > 0


def test_the_same_again(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Where the engine draws alike, whatever calls take."""
    model = load(model_folders["llama"])
    config = config_of(model_folders, tmp_path, f"thought.thought_tokens={BUDGET}")
    found = []
    for docs in (1, 3):
        batched = config_of(
            model_folders,
            tmp_path,
            f"thought.thought_tokens={BUDGET}",
            f"rollout.docs_per_batch={docs}",
        )
        assert batched.thought == config.thought
        scripted = Busy(words(model, "shout a"), model.tool_ids, model.think_close_id)
        engine = opened(model, batched, scripted)
        with called(model) as tools:
            engine.tools = tools
            found.append(thoughts_of(engine.sample([context(n) for n in range(3)], place)))
        engine.close()
    assert same(*found)


def test_a_config_with_both_is_allowed(model_folders: dict[str, Path], tmp_path: Path) -> None:
    tools = "thought.tools={use: {python: null}, result_tokens: 5}"
    config = config_of(model_folders, tmp_path, tools)
    assert config.rollout.engine == "vllm"
    assert config.thought.tools.markers == MARKERS
