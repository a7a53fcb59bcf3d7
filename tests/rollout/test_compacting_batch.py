"""Branches that have ended are left behind: fewer rows, and the same thoughts to the bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES
from test_static_batch import assert_same_thoughts, context, engine, place, thoughts_of

from rntp.model import LanguageModel, load_model
from rntp.rollout import compacting_batch, static_batch
from rntp.rollout.compacting_batch import going_on
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.sampling import Draw, draw
from rntp.types import Context, Thought

THOUGHTS, BUDGET = 16, 20


def likely(*ends: int | None) -> Draw:
    """Draws from a model that likes to end: these tokens are as likely as its first choice."""

    def from_biased(
        logits: torch.Tensor, uniforms: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        biased = logits.clone()
        biased[:, ends] = logits.max(dim=1, keepdim=True).values
        return draw(biased, uniforms, temperature)

    return from_biased


def sampler(model: LanguageModel, **more) -> InProcessEngine:
    """Of thoughts and answers that end early."""
    biased = likely(model.think_close_id, model.eos_id)
    return engine(model, thoughts=THOUGHTS, budget=BUDGET, draw=biased, **more)


def pages(documents: int) -> list[Context]:
    return [context(d, 24 - d) for d in range(documents)]


def counted(
    model: LanguageModel, contexts: list[Context], sampler: InProcessEngine
) -> tuple[list[Thought], list[int]]:
    """The thoughts, and the rows of each forward after the one over the pages."""
    rows: list[int] = []
    hook = model.hf.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = thoughts_of(sampler.sample(contexts, place))
    hook.remove()
    return found, rows[1:]


def sampled(
    model: LanguageModel, documents: int, answer_tokens: int = 0
) -> tuple[list[Thought], list[int]]:
    return counted(model, pages(documents), sampler(model, answer_tokens=answer_tokens))


@pytest.mark.parametrize("answer_tokens", [0, 5])
@pytest.mark.parametrize("documents", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fewer_rows_and_the_same_bits(
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    documents: int,
    answer_tokens: int,
) -> None:
    model = load_model(str(model_folders[architecture]))
    own, rows = sampled(model, documents, answer_tokens)
    monkeypatch.setattr(compacting_batch, "LEFT", 0.0)
    other, all_rows = sampled(model, documents, answer_tokens)
    for mine, theirs in zip(own, other, strict=True):
        assert torch.equal(mine.sampled_ids, theirs.sampled_ids)
        assert torch.equal(mine.answer_ids, theirs.answer_ids)
        assert torch.equal(mine.drawn_logprobs, theirs.drawn_logprobs)
    branches = len(own)
    assert set(all_rows) == {branches}
    assert len(rows) == len(all_rows)
    assert sum(rows) < 0.7 * sum(all_rows)
    thinking = rows[: max(len(t.sampled_ids) for t in own)]
    for t, decoded in enumerate(thinking):
        going = sum(len(thought.sampled_ids) > t for thought in own)
        assert going <= decoded  # nobody who has something to say is left behind
    assert thinking == sorted(thinking, reverse=True)


def on_trial(work: Callable[[], None], stand: Callable[[], None]) -> Callable[[], None]:
    """`as_graph` without a GPU: the steps that capturing takes, and no graph."""
    for _ in range(3):
        stand()
        work()
    return work


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("answer_tokens", [0, 5])
@pytest.mark.parametrize("documents", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fixed_shapes_have_lanes_for_fewer(
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    documents: int,
    answer_tokens: int,
    graphs: bool,
) -> None:
    monkeypatch.setattr(static_batch, "STEPS_BETWEEN_LOOKS", 2)
    monkeypatch.setattr(static_batch, "has_graphs", lambda device: graphs)
    monkeypatch.setattr(static_batch, "as_graph", on_trial)
    model = load_model(str(model_folders[architecture]))
    fixed = sampler(model, answer_tokens=answer_tokens, fixed_shapes=True)
    batches = [pages(documents), [context(7 + d, 20 + d) for d in range(documents)]]
    for contexts in [*batches, batches[0]]:  # lanes are made once, and then take over
        own, rows = counted(model, contexts, fixed)
        other, _ = counted(model, contexts, sampler(model, answer_tokens=answer_tokens))
        assert_same_thoughts(own, other)
        branches = len(own)
        assert set(rows) >= {branches, branches // 2, branches // 4}
        if graphs:
            continue  # steps on trial are among the rows
        assert sum(rows) < 0.8 * branches * len(rows)
        for t, decoded in enumerate(rows[: max(len(x.sampled_ids) for x in own)]):
            assert sum(len(thought.sampled_ids) > t for thought in own) <= decoded
    (decoder,) = fixed._kept.values()
    assert list(decoder._think._lanes) == [48, 24, 12]


def test_lanes_have_no_fewer_than_eight(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    fixed = engine(model, thoughts=4, fixed_shapes=True)
    fixed.sample(pages(1), place)
    (decoder,) = fixed._kept.values()
    loop = decoder._think
    assert loop._that_holds(1, loop._widest) is loop._widest  # six would hold it


def test_which_branches_go_on() -> None:
    ended = torch.ones(2, 32, dtype=torch.bool)
    ended[0, [3, 30]] = False
    ended[1, 7:16] = False
    kept = going_on(ended)
    assert kept is not None
    assert kept.shape == (2, 16)  # nine go on in one of the documents, and eights are kept
    assert {3, 30} <= set(kept[0].tolist())
    assert set(range(7, 16)) <= set(kept[1].tolist())
    assert all(row == sorted(set(row)) for row in kept.tolist())


@pytest.mark.parametrize(("going", "number"), [(1, 8), (8, 8), (17, 24), (24, 24), (25, None)])
def test_a_few_less_are_not_worth_a_copy(going: int, number: int | None) -> None:
    kept = going_on((torch.arange(32) >= going)[None])
    assert (None if kept is None else kept.shape[1]) == number
