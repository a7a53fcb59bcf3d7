"""Results that are fed in one pass: the same numbers as a token at a time, and as one sequence."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, VOCABULARY, tiny_tokenizer
from test_calling import (
    busy,
    called,
    context,
    engine,
    load,
    place,
    same,
    scripted,
    shouts,
    thoughts_of,
    words,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rntp.model import LanguageModel
from rntp.model.thought_tree import thought_branch
from rntp.rollout import Check, calling_batch
from rntp.rollout.calling_batch import CallingBatch
from rntp.rollout.calling_branch import CallingBranch
from rntp.tools import Page
from rntp.types import Rollout, Thought

TEMPERATURE = 0.75
Drawing = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def noting(sample: Drawing, notes: dict[float, float]) -> Drawing:
    """The same draws; their log-probs in float64, by their chance. A branch that waits is asked
    once more for its next token, so that the last one counts."""

    def put(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ids, logprobs = sample(logits, uniforms, temperature)
        notes.update(zip(uniforms.tolist(), logprobs.tolist(), strict=True))
        return ids, logprobs

    return put


def a_token_at_a_time(
    self: CallingBatch,
    all_of: list[CallingBranch],
    given: Sequence[tuple[int, list[int]]],
    check: Check,
) -> None:
    """Feed results beside what the other branches are fed over and over."""
    for n, result in given:
        for token in result:
            position = self._rewind(all_of)
            ids = torch.tensor([self._to_feed(branch) for branch in all_of])
            self._model.hidden(ids, position, self._attention)
            all_of[n].read([token])


def by_one_sequence(model: LanguageModel, rollouts: list[Rollout]) -> list[Tensor]:
    """Log-probs of what was drawn, by the model's own attention on page and thought."""
    markers = model.think_open_id, model.think_close_id
    model.hf.set_attn_implementation("sdpa")
    found = []
    for rollout in rollouts:
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            for t in group:
                branch = thought_branch(t.sampled_ids, t.closed, *markers)
                ids = torch.cat([rollout.context.token_ids[:position], branch])
                with torch.no_grad():
                    logp = torch.log_softmax(model.hf(ids[None]).logits[0] / TEMPERATURE, -1)
                told = logp[:-1].gather(1, ids[1:, None])[:, 0]
                found.append(t.drawn(told[position:][: len(t.sampled_ids)]))
    model.hf.set_attn_implementation("rntp")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_are_those_of_a_token_at_a_time_and_of_one_sequence(
    model_folders: dict[str, Path], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: fed alone, four at a time (two of them filled up), and token by token."""
    model = load(model_folders[architecture], torch.float64)
    ways: dict[str, list[Rollout]] = {}
    notes: dict[str, dict[float, float]] = {}
    with monkeypatch.context() as patch:
        for way in ("alone", "together", "a token at a time"):
            if way == "together":
                patch.setattr(calling_batch, "fed_together", lambda device: 4)
            if way == "a token at a time":
                patch.setattr(CallingBatch, "_give", a_token_at_a_time)
            notes[way] = {}
            with called(model) as tools:
                ways[way] = engine(
                    model, tools, temperature=TEMPERATURE, draw=noting(busy(model), notes[way])
                ).sample([context(0), context(1, 17)], place)
    alone = thoughts_of(ways["alone"])
    assert sum(t.num_given for t in alone) >= 40
    assert max(len(t.calls) for t in alone) >= 2  # a second result stands behind the first
    for way in ("together", "a token at a time"):
        for one, other in zip(alone, thoughts_of(ways[way]), strict=True):
            assert torch.equal(one.sampled_ids, other.sampled_ids)
            assert torch.equal(one.given, other.given)
        assert notes[way].keys() == notes["alone"].keys()
        gaps = [abs(notes[way][key] - value) for key, value in notes["alone"].items()]
        assert max(gaps) < 1e-10
    # The numbers of the engine, as float64: by their value as float32, which is all a thought has.
    exact = {torch.tensor(x).item(): x for x in notes["alone"].values()}
    for thought, told in zip(alone, by_one_sequence(model, ways["alone"]), strict=True):
        drawn = [exact[x] for x in thought.drawn_logprobs.tolist()]
        own = torch.tensor(drawn, dtype=torch.float64)
        torch.testing.assert_close(own, told, atol=1e-10, rtol=0)


@pytest.mark.parametrize("together", [1, 3])
def test_a_result_takes_one_pass_and_the_next_draw_comes_from_its_last_token(
    model_folders: dict[str, Path], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of every model call: 3 branches draw; two results of 8 tokens, and later one."""
    model = load(model_folders["llama"])
    monkeypatch.setattr(calling_batch, "fed_together", lambda device: together)
    opening, closing = model.tool_ids[:2]
    call = [opening, *words(model, "shout some dogs"), closing]
    script = {
        (0, 3, 0): [*call, 5, model.think_close_id],
        (0, 3, 1): [*call, 7, 9, model.think_close_id],
        (0, 3, 2): [4, *call, 5, model.think_close_id],
    }
    rows = []
    inner = type(model).hidden

    def counted(self: LanguageModel, ids: Tensor, *more: object) -> Tensor:
        rows.append(len(ids))
        return inner(self, ids, *more)

    monkeypatch.setattr(type(model), "hidden", counted)
    with called(model) as tools:
        desk, asked = tools.desk, tools.desk.settle

        def at_once(calls: Sequence, *, wait: bool) -> list:
            return asked(calls, wait=True)

        monkeypatch.setattr(desk, "settle", at_once)
        (rollout,) = engine(model, tools, draw=scripted(script), budget=40).sample(
            [context(0)], lambda c, n: (3,)
        )
    assert [t.num_given for t in rollout.thoughts[0]] == [8, 8, 8]
    draws, passes = rows[1:], [[8, 8], [8]] if together == 1 else [[24], [24]]
    # Both calls end with the same draw, the third one later; then two more at least.
    n = len(call)
    assert draws == [*[3] * n, *passes[0], 3, *passes[1], 3, 3]


def wide_model(folder: Path) -> LanguageModel:
    """One layer with the widths of SmolLM2-135M, random."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=1,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load(folder)


def test_seconds_of_calls_change_no_bit_at_real_widths(tmp_path: Path) -> None:
    """Where the library's sums depend on the number of rows: 23 thoughts call and end, one draws on
    by itself, or while the others wait."""
    model = wide_model(tmp_path)
    opening, closing = model.tool_ids[:2]
    call = [[opening, *words(model, "shout " + "dog " * n), closing] for n in range(1, 7)]
    script = {(0, 3, m): [*call[m % 6], 20 + m, model.think_close_id] for m in range(23)}
    script[0, 3, 23] = [*range(5, 45), model.think_close_id]

    def run(seconds: float) -> list[Thought]:
        def tool(text: str, page: Page) -> str:
            time.sleep(seconds)
            return shouts(text, page)

        with called(model, tool) as tools:
            rollouts = engine(model, tools, thoughts=24, draw=scripted(script), budget=60).sample(
                [context(0)], lambda c, n: (3,)
            )
        return thoughts_of(rollouts)

    soon, late = run(0), run(0.5)
    assert all(t.num_given >= 4 for t in soon[:-1])
    assert len(soon[-1].sampled_ids) == 41
    assert same(soon, late)
