"""Sampling without sharing: the tree engine's thoughts, and the log-probs of plain sequences."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain_models import load_plain

from rntp.model import LanguageModel, load_model
from rntp.objective.forward import build_tree, forward
from rntp.objective.rewards_and_advantages import sampler_logp
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.unshared import PlainDecoder, UnsharedEngine
from rntp.types import Context, NextTokenStats, Rollout

SETTINGS = {"thoughts": 4, "budget": 9, "answer_tokens": 5, "temperature": 0.8, "seed": 2}


def contexts(number: int = 3) -> list[Context]:
    draw = torch.Generator().manual_seed(4)
    return [
        Context(n, f"doc{n}", torch.randint(1, 318, (40 - 5 * n,), generator=draw))
        for n in range(number)
    ]


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (5, len(context) - 6)


def ids_of(rollouts: list[Rollout]) -> list[list[int]]:
    thoughts = [t for r in rollouts for group in r.thoughts for t in group]
    return [[*t.sampled_ids.tolist(), -1, *t.answer_ids.tolist()] for t in thoughts]


def closing(model: LanguageModel):
    """Closes every third thought or so, and ends as many answers."""
    from rntp.rollout.sampling import draw

    def sample(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float):
        ids, logp = draw(logits, uniforms, temperature)
        wide = torch.log_softmax(logits.double() / temperature, -1)
        for stop, token in ((uniforms < 0.1, model.think_close_id), (uniforms > 0.9, 0)):
            ids = torch.where(stop, token, ids)
            logp = torch.where(stop, wide[:, token].to(logp), logp)
        return ids, logp

    return sample


@pytest.fixture(scope="module")
def folder(model_folders: dict[str, Path]) -> str:
    return str(model_folders["llama"])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_a_llama_thinks_and_answers_the_same_either_way(
    folder: str, cached: bool, together: bool
) -> None:
    shared = load_model(folder, dtype=torch.float64)
    plain = load_model(folder, dtype=torch.float64, sharing="none")
    assert plain.plain is not None
    plain.plain = replace(plain.plain, cached=cached, together=together)
    draw = closing(shared)
    wanted = InProcessEngine(shared, slots=64, draw=draw, **SETTINGS).sample(contexts(), place)
    found = UnsharedEngine(plain, draw=draw, **SETTINGS).sample(contexts(), place)
    assert ids_of(found) == ids_of(wanted)
    closed = [t.closed for r in wanted for g in r.thoughts for t in g]
    ended = [t.answer_ended for r in wanted for g in r.thoughts for t in g]
    assert any(closed)
    assert not all(closed)
    assert any(ended)
    assert not all(ended)
    assert [t.closed for r in found for g in r.thoughts for t in g] == closed
    assert [t.answer_ended for r in found for g in r.thoughts for t in g] == ended
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own.entropy, other.entropy)
        torch.testing.assert_close(own.nll, other.nll)
    torch.testing.assert_close(sampler_logp(found), sampler_logp(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["mamba", "mamba2", "jamba", "qwen3-next", "granite-hybrid", "lfm2", "bloom", "rwkv"]
)
def test_log_probs_are_those_of_the_forward_that_trains(name: str) -> None:
    model = load_plain(name)
    assert model.plain is not None
    assert model.plain.cached == (name != "rwkv")
    engine = UnsharedEngine(model, draw=closing(model), **SETTINGS)
    rollouts = engine.sample(contexts(2), place)
    assert any(len(t.answer_ids) for r in rollouts for g in r.thoughts for t in g)
    with torch.no_grad():
        scores = forward(model, build_tree(model, rollouts, 4), temperature=0.8)
    drawn = sampler_logp(rollouts)
    assert drawn.std() > 0.5
    torch.testing.assert_close(scores.thought_logp_M, drawn, rtol=0, atol=2e-4)


def test_thoughts_depend_neither_on_company_nor_on_batches(folder: str) -> None:
    model = load_model(folder, sharing="none")
    whole = UnsharedEngine(model, **SETTINGS).sample(contexts(), place)
    alone = UnsharedEngine(model, docs_per_batch=1, **SETTINGS).sample(contexts(), place)
    assert ids_of(whole) == ids_of(alone)
    assert ids_of(UnsharedEngine(model, **SETTINGS).sample(contexts()[2:], place)) == ids_of(
        whole[2:]
    )


def test_sampling_stops_when_it_is_asked_to(folder: str) -> None:
    model = load_model(folder, sharing="none")
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        UnsharedEngine(model, **SETTINGS).sample(contexts(), place, check)


def test_the_prefix_is_read_once_for_all_thoughts(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rntp.rollout.unshared as module

    model, shapes = load_model(folder, sharing="none"), []
    original = module.run_plain

    def counted(hf, plain, ids_BS, **more):
        shapes.append(tuple(ids_BS.shape))
        return original(hf, plain, ids_BS, **more)

    monkeypatch.setattr(module, "run_plain", counted)
    settings = {**SETTINGS, "answer_tokens": 0}
    UnsharedEngine(model, **settings).sample(contexts(1), lambda c, o: (10,))
    # The page, the prefix with its marker, and then a token a thought.
    assert shapes == [(1, 40), (1, 11), *[(4, 1)] * 8]


def test_rows_of_one_length_go_on_together(folder: str) -> None:
    model = load_model(folder, sharing="none")
    rows = torch.stack([c.token_ids[:12] for c in contexts(2)])
    with torch.no_grad():
        decoder = PlainDecoder(model, rows)
        decoder.feed(torch.tensor([5, 7]))
        whole = torch.cat([rows, torch.tensor([[5], [7]])], dim=1)
        wanted = model.hf(input_ids=whole, use_cache=False).logits[:, -1]
        torch.testing.assert_close(decoder.logits, wanted, rtol=0, atol=1e-4)
