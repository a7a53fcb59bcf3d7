"""Generated answers: what the sampler says of them, their place in the tree, and the leak rule."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, compute_norms_in_float64
from rntp_kernels.tree_attention import dense_mask

from rntp.model import LanguageModel, load_model
from rntp.model.reading import LossReads
from rntp.model.thought_tree import thought_branch
from rntp.model.tree_sizes import learning_tokens, tree_tokens, unshared_tokens
from rntp.objective.forward import build_tree, forward
from rntp.objective.quantities import Counts, ForwardOutputs
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.sampling import draw
from rntp.types import Context, NextTokenStats, Rollout, Thought

BUDGET, ANSWER, HORIZON = 6, 5, 3


def context(ordinal: int, length: int = 24) -> Context:
    generator = torch.Generator().manual_seed(100 + ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 318, (length,), generator=generator))


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (3, 10, len(context) - 4)


def uneven(model: LanguageModel) -> Callable:
    """Sampling that closes some thoughts and ends some answers early."""

    def sample(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float):
        ids, _ = draw(logits, uniforms, temperature)
        ids = torch.where(uniforms < 0.2, model.think_close_id, ids)
        ids = torch.where(uniforms > 0.8, model.eos_id, ids)
        logp = torch.log_softmax(logits / temperature, dim=-1)
        return ids, logp.gather(1, ids[:, None])[:, 0]

    return sample


def engine(model: LanguageModel, **more) -> InProcessEngine:
    settings = {"thoughts": 3, "budget": BUDGET, "answer_tokens": ANSWER, "temperature": 1.0}
    return InProcessEngine(model, **{**settings, "seed": 5, "slots": 32, **more})


def thoughts_of(rollouts: list[Rollout]) -> list[Thought]:
    return [t for r in rollouts for group in r.thoughts for t in group]


def exact(folder: Path) -> LanguageModel:
    model = load_model(str(folder), dtype=torch.float64)
    compute_norms_in_float64(model.hf)
    return model


@pytest.mark.parametrize("temperature", [1.0, 0.75])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampler_tree_and_one_sequence_agree(
    model_folders: dict[str, Path], architecture: str, temperature: float
) -> None:
    """The log-probs of thought and answer: as sampled against the shared prefix, in the token
    tree, and by the model's own attention on prefix + thought + answer."""
    model = exact(model_folders[architecture])
    rollouts = engine(model, temperature=temperature, draw=uneven(model)).sample(
        [context(0), context(1, 17)], place
    )
    thoughts = thoughts_of(rollouts)
    assert {t.closed for t in thoughts} == {t.answer_ended for t in thoughts} == {True, False}
    assert len({(len(t.sampled_ids), len(t.answer_ids)) for t in thoughts}) >= 6

    tree = build_tree(model, rollouts, HORIZON)
    in_tree = forward(model, tree, temperature=temperature).thought_logp_M
    sampled = torch.cat([t.drawn_logprobs for t in thoughts])
    model.hf.set_attn_implementation("sdpa")
    plain = []
    for rollout in rollouts:
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            for t in group:
                branch = thought_branch(
                    t.sampled_ids, t.closed, model.think_open_id, model.think_close_id
                )
                ids = torch.cat([rollout.context.token_ids[:position], branch, t.answer_ids])
                logits = model.hf(ids[None]).logits[0, :-1] / temperature
                logp = torch.log_softmax(logits, -1).gather(1, ids[1:, None])[:, 0]
                plain += [logp[position:][: len(t.sampled_ids)], logp[-len(t.answer_ids) :]]
    expected = torch.cat(plain)
    assert len(expected) == Counts.of(rollouts, HORIZON).thought
    torch.testing.assert_close(in_tree, expected, rtol=1e-10, atol=1e-12)
    # The sampler's attention scores are float32, and so are the log-probs that it keeps.
    torch.testing.assert_close(sampled, expected.float(), rtol=0, atol=1e-5)
    assert sampled.std() > 0.1


def test_answers_change_no_thought(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    contexts = [context(0), context(1, 17)]
    with_answers = thoughts_of(engine(model).sample(contexts, place))
    without = thoughts_of(engine(model, answer_tokens=0).sample(contexts, place))
    for one, other in zip(with_answers, without, strict=True):
        assert torch.equal(one.sampled_ids, other.sampled_ids)
        assert torch.equal(one.sampled_logprobs, other.sampled_logprobs)
        assert len(other.answer_ids) == len(other.answer_logprobs) == 0
        assert 1 <= len(one.answer_ids) <= ANSWER


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_a_function_of_their_own_indices(
    model_folders: dict[str, Path], dtype: torch.dtype
) -> None:
    model = load_model(str(model_folders["llama"]), dtype=dtype)

    def answers(contexts: list[Context], **more) -> list[list[int]]:
        rollouts = engine(model, draw=uneven(model), **more).sample(contexts, place)
        return [t.answer_ids.tolist() for t in thoughts_of(rollouts)]

    contexts = [context(n, 24 - n) for n in range(4)]
    together = answers(contexts, docs_per_batch=4)
    for docs_per_batch in (1, 3):
        assert answers(contexts, docs_per_batch=docs_per_batch) == together
    assert answers(contexts[2:], docs_per_batch=2) == together[2 * 9 :]
    assert len({tuple(a) for a in together}) > 20
    assert answers(contexts, seed=6) != together
    assert answers(contexts, purpose="other") != together


def test_an_answer_ends_at_the_end_token(model_folders: dict[str, Path]) -> None:
    model = load_model(str(model_folders["llama"]))
    thoughts = thoughts_of(
        engine(model, thoughts=8, draw=uneven(model)).sample([context(0)], place)
    )
    ended = [t for t in thoughts if t.answer_ended]
    assert 0 < len(ended) < len(thoughts)
    for t in thoughts:
        ends = (t.answer_ids == model.eos_id).nonzero().flatten().tolist()
        assert ends == ([len(t.answer_ids) - 1] if t.answer_ended else [])
        assert torch.equal(t.answer, t.answer_ids[: len(t.answer_ids) - len(ends)])
        assert len(t.answer_logprobs) == len(t.answer_ids)
        assert t.answer_ended or len(t.answer_ids) == ANSWER
    # A tokenizer without an end token: every answer is as long as it may be.
    model.tokenizer.eos_token = None
    assert model.eos_id is None
    for t in thoughts_of(engine(model).sample([context(0)], place)):
        assert not t.answer_ended
        assert len(t.answer) == ANSWER


def test_answers_and_continuations_do_not_see_each_other(model_folders: dict[str, Path]) -> None:
    """The leak rule on the mask, and on the numbers."""
    model = exact(model_folders["llama"])
    rollouts = engine(model, draw=uneven(model)).sample([context(0), context(1, 17)], place)
    tree = build_tree(model, rollouts, HORIZON)
    layout, mask = tree.tree.layout, dense_mask(tree.tree.layout)
    branches = [s for s, p in enumerate(layout.parents) if p != -1 and layout.parents[p] == -1]
    assert len(branches) == len(thoughts_of(rollouts)) == 18
    assert sum(len(t.answer_ids) > 1 for t in thoughts_of(rollouts)) >= 12
    for segment in branches:
        parent, position = layout.parents[segment], layout.attach[segment]
        below = [s for s, p in enumerate(layout.parents) if p == segment]
        if len(below) == 1:  # an answer of one token predicts nothing: it has no segment
            continue
        continuation, answer = below
        rows = {s: tree.tree.rows(s) for s in (parent, segment, continuation, answer)}
        assert mask[rows[answer]][:, rows[segment]].all()
        assert mask[rows[answer]][:, rows[parent][:position]].all()
        for s in (segment, answer):  # no thought and no answer sees what comes next in the page
            assert not mask[rows[s]][:, rows[parent][position:]].any()
            assert not mask[rows[s]][:, rows[continuation]].any()
        assert not mask[rows[continuation]][:, rows[answer]].any()

    def scores(rollout: Rollout) -> ForwardOutputs:
        return forward(model, build_tree(model, [rollout], HORIZON), temperature=1.0)

    first = replace(rollouts[0], positions=(3,), thoughts=rollouts[0].thoughts[:1])
    other_page = first.context.token_ids.clone()
    other_page[3:] = (other_page[3:] + 100) % 318
    other_text = replace(first, context=replace(first.context, token_ids=other_page))
    other_answers = [replace(t, answer_ids=(t.answer_ids + 7) % 318) for t in first.thoughts[0]]
    own, text, answers = map(
        scores, (first, other_text, replace(first, thoughts=(tuple(other_answers),)))
    )
    assert torch.equal(own.thought_logp_M, text.thought_logp_M)
    assert (own.think_logp_PGH - text.think_logp_PGH).abs().min() > 1e-6
    assert torch.equal(own.think_logp_PGH, answers.think_logp_PGH)
    assert not torch.equal(own.thought_logp_M, answers.thought_logp_M)


def test_answer_tokens_belong_to_their_thought_and_are_counted(
    model_folders: dict[str, Path],
) -> None:
    model = load_model(str(model_folders["llama"]))
    rollouts = engine(model, draw=uneven(model)).sample([context(0)], place)
    tree, thoughts = build_tree(model, rollouts, HORIZON), thoughts_of(rollouts)
    assert tree.thought_index.bincount().tolist() == [t.num_drawn for t in thoughts]
    wanted = torch.cat([torch.cat([t.sampled_ids, t.answer_ids]) for t in thoughts])
    assert torch.equal(tree.thought_targets, wanted)
    assert rollouts[0].num_sampled == len(wanted)
    # The end of the thought's branch predicts both the answer and the continuation.
    first_of_answer = torch.tensor([len(t.sampled_ids) for t in thoughts])
    first_of_answer[1:] += torch.tensor([t.num_drawn for t in thoughts]).cumsum(0)[:-1]
    ends = tree.thought_rows[first_of_answer]
    assert torch.equal(ends, tree.think_rows_PGH[:, :, 0].flatten())

    own = [1 + len(t.sampled_ids) + (not t.closed) for t in thoughts]
    # The page up to its last continuation; ends of continuations and answers predict nothing.
    answers = [len(t.answer_ids) - 1 for t in thoughts]
    total = 20 + HORIZON - 1 + sum(own) + sum(answers) + 9 * (HORIZON - 1)
    assert tree_tokens(rollouts[0], HORIZON) == total == tree.tree.layout.num_tokens
    prefixes = 3 * (3 + 10 + 20)
    two_sequences = 2 * (prefixes + sum(own)) + 9 * (HORIZON - 1) + sum(answers)
    assert unshared_tokens(rollouts[0], HORIZON) == two_sequences


def test_answers_learn_where_continuations_do_not(model_folders: dict[str, Path]) -> None:
    model = exact(model_folders["llama"])
    rollouts = engine(model, draw=uneven(model)).sample([context(0), context(1, 17)], place)
    outcomes = []
    for reads in (LossReads(context=True), LossReads(context=True, continuation=False)):
        model.hf.zero_grad()
        tree = build_tree(model, rollouts, HORIZON, reads)
        assert tree.tree.num_learning == sum(learning_tokens(r, HORIZON, reads) for r in rollouts)
        scores = forward(model, tree, temperature=0.8)
        (scores.thought_logp_M.square().sum() + scores.context_logp.sum()).backward()
        outcomes.append((scores, {n: p.grad.clone() for n, p in model.hf.named_parameters()}))
    (full, wanted), (spared, found) = outcomes
    assert not spared.think_logp_PGH.requires_grad
    for name in ("thought_logp_M", "think_logp_PGH", "no_think_logp_PH", "context_logp"):
        mine, true = getattr(spared, name).detach(), getattr(full, name).detach()
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    for name, true in wanted.items():
        assert (found[name] - true).norm() < 1e-11 * true.norm(), name
