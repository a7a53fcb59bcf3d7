"""Sampling against the model's own `generate`, against the trainer's forward, and its seeds."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES
from transformers import AutoModelForCausalLM

from rntp.model import LanguageModel, load_model
from rntp.objective.forward import build_tree, forward
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.sampling import draw, greedy
from rntp.types import Context, NextTokenStats, Rollout

BUDGET = 9


def context(ordinal: int, length: int = 24) -> Context:
    generator = torch.Generator().manual_seed(100 + ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 318, (length,), generator=generator))


def engine(model: LanguageModel, **more) -> InProcessEngine:
    settings = {"thoughts": 3, "budget": BUDGET, "temperature": 1.0, "seed": 5, "slots": 32}
    return InProcessEngine(model, **{**settings, **more})


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (3, 10, len(context) - 4)


def ids_of(rollouts: list[Rollout]) -> list[list[int]]:
    return [t.sampled_ids.tolist() for r in rollouts for group in r.thoughts for t in group]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate(model_folders: dict[str, Path], architecture: str) -> None:
    model = load_model(str(model_folders[architecture]))
    hf = AutoModelForCausalLM.from_pretrained(model_folders[architecture])
    contexts = [context(0), context(1, 17)]
    rollouts = engine(model, draw=greedy, thoughts=2).sample(contexts, place)
    seen = set()
    for rollout in rollouts:
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            # The markers are new tokens: give the plain model the same two rows.
            hf.resize_token_embeddings(320, mean_resizing=False)
            hf.load_state_dict(model.hf.state_dict())
            prefix = rollout.context.token_ids[:position]
            prompt = torch.cat([prefix, torch.tensor([model.think_open_id])])
            out = hf.generate(
                prompt[None],
                attention_mask=torch.ones_like(prompt)[None],
                max_new_tokens=BUDGET,
                do_sample=False,
                eos_token_id=model.think_close_id,
                pad_token_id=0,
            )
            expected = out[0, len(prompt) :].tolist()
            for thought in group:
                assert thought.sampled_ids.tolist() == expected
                seen.add(tuple(expected))
    assert len(seen) >= 4  # different prefixes gave different thoughts


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampler_and_trainer_agree(
    model_folders: dict[str, Path], architecture: str, temperature: float
) -> None:
    model = load_model(str(model_folders[architecture]))
    rollouts = engine(model, temperature=temperature).sample([context(0), context(1, 17)], place)
    scores = forward(model, build_tree(model, rollouts, 3), temperature=temperature)
    sampled = torch.cat([t.sampled_logprobs for r in rollouts for g in r.thoughts for t in g])
    torch.testing.assert_close(scores.thought_logp_M.detach(), sampled, rtol=0, atol=1e-4)
    assert sampled.std() > 0.1
    # The prefill's losses are the trainer's no-think losses of the first continuation token.
    nll = torch.cat([r.nll for r in rollouts])
    torch.testing.assert_close(-scores.no_think_logp_PH[:, 0], nll, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thoughts_do_not_depend_on_the_documents_beside(
    model_folders: dict[str, Path], dtype: torch.dtype
) -> None:
    model = load_model(str(model_folders["llama"]), dtype=dtype)
    contexts = [context(n, 24 - n) for n in range(5)]
    together = engine(model, docs_per_batch=5).sample(contexts, place)
    for docs_per_batch in (1, 2):
        apart = engine(model, docs_per_batch=docs_per_batch).sample(contexts, place)
        assert ids_of(apart) == ids_of(together)
    backwards = engine(model).sample(contexts[::-1], place)
    assert ids_of(backwards[::-1]) == ids_of(together)


def test_every_index_changes_the_draw(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    same = context(0)
    other_ordinal = Context(1, "doc0", same.token_ids)
    first, second = engine(model).sample([same, other_ordinal], place)
    thoughts = ids_of([first, second])
    assert len({tuple(t) for t in thoughts}) == len(thoughts) == 18
    assert ids_of(engine(model, seed=6).sample([same], place)) != thoughts[:9]
    assert ids_of(engine(model, purpose="other").sample([same], place)) != thoughts[:9]
    assert ids_of(engine(model).sample([same], place)) == thoughts[:9]


def test_closed_by_the_model_or_by_force(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    contexts = [context(n) for n in range(8)]
    drawn = torch.tensor([i for t in ids_of(engine(model).sample(contexts, place)) for i in t])
    model = replace(model, think_close_id=int(drawn.mode().values))  # a likely token closes
    thoughts = [
        t for r in engine(model, thoughts=8).sample(contexts, place) for g in r.thoughts for t in g
    ]
    closed = [t for t in thoughts if t.closed]
    assert 0 < len(closed) < len(thoughts)
    for thought in thoughts:
        ends = (thought.sampled_ids == model.think_close_id).nonzero().flatten().tolist()
        if thought.closed:
            assert ends == [len(thought.sampled_ids) - 1]
            assert thought.num_tokens == len(thought.sampled_ids) - 1
        else:
            assert ends == []
            assert thought.num_tokens == len(thought.sampled_ids) == BUDGET
        assert len(thought.sampled_logprobs) == len(thought.sampled_ids)


def test_draw_has_the_right_frequencies() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf")]]).expand(20000, 4)
    uniforms = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for temperature in (1.0, 0.5):
        ids, logp = draw(logits, uniforms, temperature)
        weights = [math.exp(z / temperature) for z in (0, 1, 2)]
        for token in range(3):
            share = weights[token] / sum(weights)
            assert abs((ids == token).float().mean().item() - share) < 2e-4
            torch.testing.assert_close(
                logp[ids == token][0], torch.tensor(math.log(share), dtype=torch.float32)
            )
        assert not (ids == 3).any()
    ids, _ = draw(logits[:2], torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0)
    assert ids.tolist() == [0, 2]  # both ends of the unit interval are possible tokens


def test_a_stop_request_is_noticed_inside_a_rollout(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine(model).sample([context(0)], place, check)
    assert len(calls) == 4
