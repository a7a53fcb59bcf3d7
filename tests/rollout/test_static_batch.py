"""Decoding in fixed shapes: the thoughts of the growing loop, and nothing read back on the way."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES
from torch.utils._python_dispatch import TorchDispatchMode

from rntp.model import LanguageModel, load_model
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.sampling import always, draw
from rntp.types import Context, NextTokenStats, Rollout, Thought


def context(ordinal: int, length: int = 24) -> Context:
    generator = torch.Generator().manual_seed(100 + ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 318, (length,), generator=generator))


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (3, 10, len(context) - 4)


def engine(model: LanguageModel, **more) -> InProcessEngine:
    settings = {"thoughts": 3, "budget": 7, "temperature": 0.9, "seed": 5, "slots": 32}
    return InProcessEngine(model, **{**settings, **more})


def thoughts_of(rollouts: list[Rollout]) -> list[Thought]:
    return [t for r in rollouts for group in r.thoughts for t in group]


def assert_same(own: list[Rollout], other: list[Rollout]) -> None:
    assert_same_thoughts(thoughts_of(own), thoughts_of(other))


def assert_same_thoughts(own: list[Thought], other: list[Thought]) -> None:
    for mine, theirs in zip(own, other, strict=True):
        for name in ("sampled_ids", "answer_ids"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))
        assert (mine.closed, mine.answer_ended) == (theirs.closed, theirs.answer_ended)
        torch.testing.assert_close(mine.drawn_logprobs, theirs.drawn_logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_thoughts_and_answers_are_those_of_the_growing_loop(
    model_folders: dict[str, Path], architecture: str
) -> None:
    model = load_model(str(model_folders[architecture]))
    batches = [[context(0), context(1, 17)], [context(2), context(3, 20)], [context(4)]]
    drawn = torch.cat([t.sampled_ids for t in thoughts_of(engine(model).sample(batches[0], place))])
    model = replace(model, think_close_id=int(drawn.mode().values))  # a likely token closes
    fixed = engine(model, fixed_shapes=True, answer_tokens=4)
    growing = engine(model, answer_tokens=4)
    assert not growing.fixed_shapes  # the CPU's own way
    lengths = set()
    for batch in [*batches, batches[0]]:  # the first again: nothing of the others is left
        own = fixed.sample(batch, place)
        assert_same(own, growing.sample(batch, place))
        lengths |= {(len(t.sampled_ids), len(t.answer_ids)) for t in thoughts_of(own)}
        # Storage and graph of a number of branches are made once.
    assert len(fixed._kept) == 2
    assert len(lengths) >= 3


def test_weights_that_have_moved_are_read_where_they_are(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    fixed = engine(model, fixed_shapes=True)
    before = fixed.sample([context(0)], place)
    for parameter in model.hf.parameters():
        parameter.data = parameter.data * 1.2
    after = fixed.sample([context(0)], place)
    assert len(fixed._kept) == 2
    assert_same(after, engine(model).sample([context(0)], place))
    assert any(
        not torch.equal(a.sampled_ids, b.sampled_ids)
        for a, b in zip(thoughts_of(before), thoughts_of(after), strict=True)
    )


class Watch(TorchDispatchMode):
    """Notes the shapes of what every operation returns, and fails where the host would wait."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in self.WAITS:
            raise AssertionError(f"{name} waits for the device")
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.seen.append((name, tuple(found.shape)))
        return found


@pytest.mark.parametrize("how", [draw, always(7)])
def test_a_step_reads_nothing_back_and_all_steps_have_the_same_shapes(
    model_folders: dict[str, Path], how
) -> None:
    model = load_model(str(model_folders["qwen3"]))
    fixed = engine(model, fixed_shapes=True, draw=how, docs_per_batch=2)
    fixed.sample([context(0), context(1)], place)
    (decoder,) = fixed._kept.values()
    lane = decoder._think._widest
    lane.begin(1, decoder._branches.position)
    decoder._attention.rewind(decoder._attention.lengths.zero_())
    steps = []
    for _ in range(7):
        with torch.no_grad(), Watch() as watch:
            lane.advance()
        steps.append(watch.seen)
    assert len(steps[0]) > 50
    assert all(step == steps[0] for step in steps)


def test_the_watch_notices_the_growing_loop(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["qwen3"]))
    with pytest.raises(AssertionError, match="waits for the device"), Watch():
        engine(model).sample([context(0)], place)


def test_branches_that_have_all_ended_are_not_decoded_further(
    model_folders: dict[str, Path],
) -> None:
    model = load_model(str(model_folders["llama"]))
    calls = []
    fixed = engine(model, fixed_shapes=True, budget=60, slots=90, draw=always(model.think_close_id))
    (rollout,) = fixed.sample([context(0)], place, lambda: calls.append(1))
    assert all(t.closed and t.num_tokens == 0 for group in rollout.thoughts for t in group)
    assert len(calls) == 1 + 16  # one before the prefill; a look after sixteen steps
