"""Thoughts that call tools where layers cannot branch: those of the tree, and of plain forwards."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_models import load_plain
from test_calling import (
    BUDGET,
    MARKERS,
    SEED,
    busy,
    called,
    context,
    engine,
    load,
    often,
    place,
    records,
    same,
    scripted,
    thoughts_of,
    tool_run,
    words,
)

from rntp import Trainer
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.objective.forward import build_tree, forward
from rntp.objective.rewards_and_advantages import sampler_logp
from rntp.rollout.tool_calls import ToolCalls
from rntp.rollout.unshared import UnsharedEngine
from rntp.tools import Page
from rntp.types import Thought

__all__ = ["tool_run"]


def unshared_engine(model: LanguageModel, tools: ToolCalls, **more: object) -> UnsharedEngine:
    settings = {"thoughts": 3, "budget": BUDGET, "temperature": 1.0, "seed": SEED}
    made = UnsharedEngine(model, **{**settings, **more})
    made.tools = tools
    return made


def check_equal(found: list[Thought], wanted: list[Thought]) -> None:
    for own, other in zip(found, wanted, strict=True):
        assert torch.equal(own.sampled_ids, other.sampled_ids)
        assert torch.equal(own.given, other.given)
        assert torch.equal(own.answer_ids, other.answer_ids)
        assert own.calls == other.calls
        torch.testing.assert_close(own.sampled_logprobs, other.sampled_logprobs)


@pytest.mark.parametrize("answer_tokens", [0, 4])
@pytest.mark.parametrize("cached", [True, False])
def test_thoughts_and_results_are_those_of_the_tree(
    model_folders: dict[str, Path], answer_tokens: int, cached: bool
) -> None:
    shared, plain = (
        load(model_folders["llama"], torch.float64, sharing=sharing) for sharing in ("auto", "none")
    )
    assert plain.plain is not None
    plain.plain = replace(plain.plain, cached=cached)
    pages = [context(0), context(1, 17)]
    more = {"answer_tokens": answer_tokens, "draw": busy(shared)}
    with called(shared) as tools:
        wanted = thoughts_of(engine(shared, tools, **more).sample(pages, place))
    with called(plain) as tools:
        found = thoughts_of(unshared_engine(plain, tools, **more).sample(pages, place))
    assert sum(t.num_given for t in wanted) >= 40
    assert max(len(t.calls) for t in wanted) > 2  # one more than is answered
    assert {t.closed for t in wanted} == {True, False}
    check_equal(found, wanted)


@pytest.mark.parametrize("name", ["mamba2", "jamba", "qwen3-next", "bloom"])
def test_log_probs_are_those_of_the_forward_that_trains(name: str) -> None:
    model = load_plain(name, tool_markers=MARKERS)
    with called(model) as tools:
        sampler = unshared_engine(model, tools, draw=busy(model))
        rollouts = sampler.sample([context(0), context(1, 17)], place)
    assert sum(t.num_given for t in thoughts_of(rollouts)) >= 20
    with torch.no_grad():
        scores = forward(model, build_tree(model, rollouts, 4), temperature=1.0)
    drawn = sampler_logp(rollouts)
    assert drawn.std() > 0.5
    torch.testing.assert_close(scores.thought_logp_M, drawn, rtol=0, atol=2e-4)


def test_a_thought_depends_neither_on_seconds_nor_on_company(
    model_folders: dict[str, Path],
) -> None:
    model = load(model_folders["llama"], sharing="none")
    pages = [context(0), context(1, 17), context(2)]

    def slow(text: str, page: Page) -> str:
        time.sleep(0.002 * (len(text) % 5))
        return text.upper() + "!"

    found = []
    for docs, function in ((3, slow), (1, lambda text, page: text.upper() + "!")):
        with called(model, function) as tools:
            sampler = unshared_engine(model, tools, docs_per_batch=docs, draw=busy(model))
            found.append(thoughts_of(sampler.sample(pages, place)))
    assert any(t.num_given for t in found[0])
    assert same(*found)


def test_a_stop_request_is_heard_while_a_tool_works(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"], sharing="none")

    begun, left = threading.Event(), threading.Event()

    def stop() -> None:
        if begun.is_set():
            raise KeyboardInterrupt

    def works(text: str, page: Page) -> str:
        begun.set()
        left.wait(60)
        return text

    opening, closing = model.tool_ids[:2]
    script = scripted({(0, 3, 0): [opening, *words(model, "shout some"), closing]})
    with called(model, works) as tools:
        with pytest.raises(KeyboardInterrupt):
            unshared_engine(model, tools, draw=script).sample([context(0)], place, stop)
        left.set()


def test_a_run_without_trees_calls_and_resumes_bit_for_bit(
    tool_run: Callable[[Path], dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rntp.rollout.engine.draw", often)

    def fit(folder: str, steps: int) -> None:
        raw = tool_run(tmp_path / folder)
        raw["model"]["sharing"] = "none"
        raw["run"]["steps"] = steps
        Trainer(Config.parse(raw)).fit()

    fit("whole", 4)
    fit("parts", 2)
    fit("parts", 4)
    whole, parts = records(tmp_path / "whole"), records(tmp_path / "parts")
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    assert sum(row["tokens/given"] for row in whole) > 0
    for one, other in zip(whole, parts, strict=True):
        assert {k: v for k, v in one.items() if "memory" not in k} == {
            k: v for k, v in other.items() if "memory" not in k
        }
