"""Thoughts that begin with a call: what is given, what is drawn, and what becomes of a call that
the budget cuts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_calling import (
    called,
    context,
    engine,
    load,
    place,
    records,
    scripted,
    thoughts_of,
    tool_run,
    words,
)
from test_plain_calling import check_equal, unshared_engine
from test_vllm_engine import config_of, distances, opened
from torch import Tensor
from vllm_scripted import Scripted

from rntp import Trainer
from rntp.config import Config
from rntp.evaluation.controls import CONTROLS
from rntp.model import LanguageModel
from rntp.objective.forward import build_tree, forward
from rntp.objective.rewards_and_advantages import sampler_logp
from rntp.rollout.sampling import draw
from rntp.rollout.tool_calls import ToolCalls, opening_ids
from rntp.runtime.files import read_json_lines
from rntp.tools import Page
from rntp.types import Thought

__all__ = ["tool_run"]

BUDGET = 6


@contextmanager
def opened_by(
    model: LanguageModel, function: Callable[[str, Page], str] = lambda text, page: text.upper()
) -> Iterator[ToolCalls]:
    with called(model, function, calls=1) as tools:
        yield replace(tools, opening=opening_ids(model, "shout"))


def mixed(model: LanguageModel) -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """Sampling that ends some calls, and some thoughts."""

    def sample(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ids, _ = draw(logits, uniforms, temperature)
        opening, closing = model.tool_ids[:2]
        ids = torch.where(uniforms < 0.12, closing, ids)
        ids = torch.where((uniforms >= 0.12) & (uniforms < 0.2), opening, ids)
        ids = torch.where((uniforms >= 0.2) & (uniforms < 0.25), model.think_close_id, ids)
        logp = torch.log_softmax(logits / temperature, dim=-1)
        return ids, logp.gather(1, ids[:, None])[:, 0]

    return sample


def test_a_call_is_begun_for_the_policy_and_made_where_the_budget_cuts_it(
    model_folders: dict[str, Path],
) -> None:
    model = load(model_folders["llama"])
    begins, (_, closing, result, end) = opening_ids(model, "shout"), model.tool_ids
    assert begins == (model.tool_ids[0], *words(model, "shout\n"))
    cut, whole, after = words(model, "a dog is it")[:BUDGET], words(model, "a b"), words(model, "!")
    assert len(cut) == BUDGET
    assert len(whole) + 1 + len(after) + 1 <= BUDGET
    script = {
        (0, 3, 0): cut,
        (0, 3, 1): [*whole, closing, *after, model.think_close_id],
        (0, 3, 2): [model.think_close_id],
    }
    with opened_by(model) as tools:
        (rollout,) = engine(model, tools, draw=scripted(script), budget=BUDGET).sample(
            [context(0)], lambda c, n: (3,)
        )
    one, two, three = rollout.thoughts[0]
    text = model.tokenizer.decode(cut)
    given = [result, *words(model, text.strip().upper())[:6], end]
    assert one.sampled_ids.tolist() == [*begins, *cut, *given]
    assert one.drawn(one.sampled_ids).tolist() == cut
    assert (one.closed, one.num_drawn, one.num_given) == (False, BUDGET, len(begins) + len(given))
    assert (one.sampled_logprobs[one.given] == 0).all()
    assert (one.drawn(one.sampled_logprobs) < 0).all()
    (call,) = one.calls
    assert (call.name, call.arguments, call.asked) == ("shout", text.strip(), len(begins) + BUDGET)
    # Behind a window the result is read, and nothing of how it was asked for.
    assert one.read_ids.tolist() == given

    given = [result, *words(model, "A B"), end]
    assert two.sampled_ids.tolist() == [
        *begins, *whole, closing, *given, *after, model.think_close_id
    ]  # fmt: skip
    assert two.closed
    assert two.read_ids.tolist() == [*given, *after, model.think_close_id]
    assert three.sampled_ids.tolist() == [*begins, model.think_close_id]
    assert three.calls == ()

    # Without an opening what the budget cuts is no call.
    with called(model, calls=1) as tools:
        script = {(0, 3, 0): [model.tool_ids[0], *words(model, "shout a")]}
        (plain,) = engine(model, tools, draw=scripted(script), budget=4).sample(
            [context(0)], lambda c, n: (3,)
        )
    assert plain.thoughts[0][0].calls == ()


@pytest.mark.parametrize("answer_tokens", [0, 4])
def test_thoughts_are_those_of_plain_forwards(
    model_folders: dict[str, Path], answer_tokens: int
) -> None:
    shared, plain = (
        load(model_folders["llama"], torch.float64, sharing=sharing) for sharing in ("auto", "none")
    )
    pages = [context(0), context(1, 17)]
    more = {"answer_tokens": answer_tokens, "draw": mixed(shared), "budget": BUDGET}
    with opened_by(shared) as tools:
        rollouts = engine(shared, tools, **more).sample(pages, place)
    wanted = thoughts_of(rollouts)
    with opened_by(plain) as tools:
        found = thoughts_of(unshared_engine(plain, tools, **more).sample(pages, place))
    cut = [t for t in wanted if t.calls and t.calls[-1].asked == len(tools.opening) + BUDGET]
    assert len(cut) >= 3
    assert len(cut) < sum(bool(t.calls) for t in wanted)
    check_equal(found, wanted)
    if not answer_tokens:
        with torch.no_grad():
            scores = forward(shared, build_tree(shared, rollouts, 3), temperature=1.0)
        torch.testing.assert_close(
            scores.thought_logp_M, sampler_logp(rollouts).double(), rtol=0, atol=1e-6
        )


def test_the_draws_of_a_thought_do_not_depend_on_who_ends_beside_it(
    model_folders: dict[str, Path],
) -> None:
    model = load(model_folders["llama"])
    found = []
    for together in (3, 1):
        with opened_by(model) as tools:
            sampler = engine(model, tools, docs_per_batch=together, draw=mixed(model))
            sampler.budget = BUDGET
            pages = [context(0), context(1, 17), context(2)]
            found.append(thoughts_of(sampler.sample(pages, place)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.sampled_ids, other.sampled_ids)


def test_another_result_stands_behind_the_same_opening(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    with opened_by(model) as tools:
        rollouts = engine(model, tools, budget=BUDGET).sample([context(0), context(1, 17)], place)
    changed = CONTROLS["other_results"](rollouts, model.tokenizer)
    own, other, theirs = (
        r[n].thoughts[0][0] for r, n in ((rollouts, 0), (changed, 0), (rollouts, 1))
    )

    def halves(thought: Thought) -> tuple[list[int], list[int]]:
        ids = thought.sampled_ids.tolist()
        begin, end = (ids.index(marker) for marker in model.tool_ids[2:])
        return [*ids[:begin], *ids[end + 1 :]], ids[begin : end + 1]

    assert halves(other) == (halves(own)[0], halves(theirs)[1])
    assert halves(own)[1] != halves(theirs)[1]
    assert other.given.nonzero()[: len(tools.opening), 0].tolist() == [*range(len(tools.opening))]


def test_a_run_resumes_bit_for_bit_and_learns_from_what_was_drawn(
    tool_run: Callable[[Path], dict], tmp_path: Path
) -> None:
    def fit(folder: str, steps: int) -> list[dict]:
        raw = tool_run(tmp_path / folder)
        raw["thought"]["tools"] |= {"opening": "e", "calls": 1}
        raw["reading"] = {"window": 8, "mixing": 0.5}
        raw["run"]["steps"] = steps
        Trainer(Config.parse(raw)).fit()
        return records(tmp_path / folder)

    whole = fit("whole", 4)
    fit("parts", 2)
    for one, other in zip(whole, fit("parts", 4), strict=True):
        assert {k: v for k, v in one.items() if "memory" not in k} == {
            k: v for k, v in other.items() if "memory" not in k
        }
    assert whole[0]["mixing/weight"] == pytest.approx(0.5, abs=1e-6)
    rows = read_json_lines(tmp_path / "whole" / "rollouts" / "step_00000001.jsonl")
    assert all(row["thought"].startswith("<tool>e\n") for row in rows)
    assert sum(bool(row["calls"]) for row in rows) > len(rows) / 2
    for row in rows:
        begins = row["given"].index(0)
        assert sum(row["given"][:begins]) == begins == len("<tool>e\n") - len("tool>")
        assert 1 <= row["num_tokens"] <= 8


def test_vllm_goes_on_from_the_opening(model_folders: dict[str, Path], tmp_path: Path) -> None:
    model = load(model_folders["llama"])
    config = config_of(model_folders, tmp_path, f"thought.thought_tokens={BUDGET}")
    scripted_child = Scripted()
    sampler = opened(model, config, scripted_child)
    with opened_by(model) as tools:
        sampler.tools = tools
        rollouts = sampler.sample([context(0), context(1, 17)], place)
    sampler.close()
    assert distances(model, rollouts, config.thought.temperature).max() < 1e-5
    thoughts = thoughts_of(rollouts)
    begins = list(opening_ids(model, "shout"))
    assert all(t.sampled_ids[: len(begins)].tolist() == begins for t in thoughts)
    called_ones = [t for t in thoughts if t.calls]
    assert len(called_ones) >= len(thoughts) - 2
    assert all(t.num_drawn <= BUDGET for t in thoughts)
