"""The first test of the project: a token tree is the same function as one sequence a thought."""

from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, compute_norms_in_float64
from rntp_kernels import TreeAttention
from rntp_kernels.tree_attention import dense_mask

from rntp.model import LanguageModel, load_model
from rntp.model.reading import BRANCHES, LossReads
from rntp.model.thought_tree import ThoughtTree, TokenTree, thought_branch
from rntp.model.tree_sizes import learning_tokens, tree_tokens, unshared_tokens
from rntp.types import Context, Rollout, Thought

HORIZON = 3
OPEN, CLOSE = 318, 319


def make_rollout(
    length: int, positions: tuple[int, ...], lengths: list[list[tuple[int, bool]]], seed: int = 0
) -> Rollout:
    """A rollout with random ids; lengths: [K][G] of (sampled tokens, closed)."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(1, OPEN, (count,), generator=generator)

    def thought(count: int, closed: bool) -> Thought:
        sampled = ids(count)
        if closed:
            sampled[-1] = CLOSE
        return Thought(sampled, torch.zeros(count), closed)

    return Rollout(
        context=Context(seed, f"doc{seed}", ids(length)),
        positions=positions,
        thoughts=tuple(tuple(thought(n, c) for n, c in group) for group in lengths),
        entropy=torch.zeros(len(positions)),
        nll=torch.zeros(len(positions)),
    )


CASES = {
    "uneven thoughts": make_rollout(
        20, (4, 11), [[(5, True), (2, False)], [(1, True), (7, False)]]
    ),
    "one position": make_rollout(12, (6,), [[(3, False), (4, True), (1, False)]]),
    "one thought": make_rollout(14, (3, 8, 9), [[(4, True)], [(2, False)], [(6, False)]]),
    "ends of the context": make_rollout(10, (1, 10 - HORIZON), [[(2, True)], [(3, False)]]),
}


def build(
    rollouts: list[Rollout], reads: LossReads = BRANCHES, horizon: int = HORIZON
) -> ThoughtTree:
    return ThoughtTree.build(
        rollouts, think_open_id=OPEN, think_close_id=CLOSE, horizon=horizon, reads=reads
    )


def load(folder: Path) -> LanguageModel:
    model = load_model(str(folder), dtype=torch.float64)
    compute_norms_in_float64(model.hf)
    assert (model.think_open_id, model.think_close_id) == (OPEN, CLOSE)
    return model


def unshared(model: LanguageModel, rollout: Rollout) -> list[torch.Tensor]:
    """Log-probs by the model's own attention, one sequence a thought: thoughts, continuations,
    and the continuations without a thought."""
    ids = rollout.context.token_ids
    thought_logps, think_logps, empty_logps = [], [], []

    def logp(sequence: torch.Tensor) -> torch.Tensor:
        logits = model.hf(sequence[None]).logits[0]
        return torch.log_softmax(logits[:-1], -1).gather(1, sequence[1:, None])[:, 0]

    for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
        continuation = ids[position : position + HORIZON]
        empty_logps.append(logp(torch.cat([ids[:position], continuation]))[-HORIZON:])
        for thought in group:
            branch = thought_branch(thought.sampled_ids, thought.closed, OPEN, CLOSE)
            scored = logp(torch.cat([ids[:position], branch, continuation]))
            think_logps.append(scored[-HORIZON:])
            thought_logps.append(scored[position : position + len(thought.sampled_ids)])
    return [torch.cat(thought_logps), torch.cat(think_logps), torch.cat(empty_logps)]


def in_tree(model: LanguageModel, rollout: Rollout, implementation: str) -> list[torch.Tensor]:
    tree = build([rollout])
    layout = tree.tree.layout
    attention = TreeAttention(layout, implementation=implementation)
    hidden = model.hidden(tree.tree.token_ids, layout.position_ids(), attention)
    continuation = tree.continuation_PH[:, None].expand(tree.think_rows_PGH.shape)
    return [
        model.logprob(hidden[rows.flatten()], targets.flatten())[0]
        for rows, targets in (
            (tree.thought_rows, tree.thought_targets),
            (tree.think_rows_PGH, continuation),
            (tree.no_think_rows_PH, tree.continuation_PH),
        )
    ]


def loss_of(logps: list[torch.Tensor]) -> torch.Tensor:
    """A loss that weighs every log-prob differently, so that no error can cancel."""
    return sum(
        (part * torch.linspace(-1, 2, len(part), dtype=part.dtype) * (i + 1)).sum()
        for i, part in enumerate(logps)
    )


@pytest.mark.parametrize("implementation", ["segmented", "dense"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tree_equals_one_sequence_a_thought(
    model_folders: dict[str, Path], architecture: str, case: str, implementation: str
) -> None:
    rollout = CASES[case]
    model = load(model_folders[architecture])
    tree_logps = in_tree(model, rollout, implementation)
    loss_of(tree_logps).backward()
    tree_grads = {name: p.grad.clone() for name, p in model.hf.named_parameters()}

    model.hf.zero_grad()
    model.hf.set_attn_implementation("sdpa")
    plain_logps = unshared(model, rollout)
    loss_of(plain_logps).backward()

    for ours, theirs in zip(tree_logps, plain_logps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_of(tree_logps), loss_of(plain_logps), rtol=1e-10, atol=0)
    for name, parameter in model.hf.named_parameters():
        error = (tree_grads[name] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert error <= 1e-12, (name, float(error))  # the bound of the project is 1e-10
        assert parameter.grad.abs().max() > 0, name  # equality of zeros would prove nothing


def test_two_documents_in_one_forest_equal_two_trees(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    first, second = CASES["uneven thoughts"], make_rollout(9, (2, 5), [[(2, True)] * 2] * 2, seed=7)
    together = build([first, second])
    hidden = together.tree.hidden(model)
    alone = torch.cat([build([r]).tree.hidden(model) for r in (first, second)])
    torch.testing.assert_close(hidden, alone, rtol=1e-12, atol=1e-12)


def test_general_tree_with_answer_beside_continuation(model_folders: dict[str, Path]) -> None:
    """thought → {continuation, answer}, and a segment hanging in the middle of another branch."""
    model = load(model_folders["qwen3"])
    generator = torch.Generator().manual_seed(3)
    sizes = [(9, -1, 0), (4, 0, 6), (3, 1, 4), (5, 1, 4), (2, 3, 2), (6, 0, 9), (2, 0, 6)]
    tree = TokenTree.build(
        [(torch.randint(1, OPEN, (n,), generator=generator), p, a) for n, p, a in sizes]
    )
    hidden = tree.hidden(model)
    model.hf.set_attn_implementation("sdpa")
    for segment, length in enumerate(tree.layout.lengths):
        rows = tree.layout.unshared(segment)
        plain = model.hf.base_model(tree.token_ids[rows][None]).last_hidden_state[0]
        torch.testing.assert_close(hidden[rows][-length:], plain[-length:], rtol=1e-10, atol=1e-12)
    mask = dense_mask(tree.layout)
    continuation, answer = tree.rows(2), tree.rows(3)
    assert not mask[answer][:, continuation].any()
    assert not mask[continuation][:, answer].any()


def test_leak_rule_on_the_mask() -> None:
    """No thought row may see its continuation, before or after the position it hangs at."""
    tree = build([CASES["uneven thoughts"]])
    mask, page = dense_mask(tree.tree.layout), tree.tree.layout.lengths[0]
    for segment, parent in enumerate(tree.tree.layout.parents):
        if parent != 0:
            continue
        position = tree.tree.layout.attach[segment]
        rows = tree.tree.rows(segment)
        assert mask[rows][:, :position].all()
        assert not mask[rows][:, position:page].any()  # the document from the position on
        assert not mask[rows][:, tree.tree.rows(segment + 1)].any()  # its continuation branch
    visible = mask.sum()
    assert visible == sum(
        length * (length + 1) // 2 + length * sum(n for _, n in tree.tree.layout.lineage(s))
        for s, length in enumerate(tree.tree.layout.lengths)
    )


def test_changing_the_continuation_changes_no_thought(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    rollout = CASES["one position"]
    changed_ids = rollout.context.token_ids.clone()
    changed_ids[6 : 6 + HORIZON] = (changed_ids[6 : 6 + HORIZON] + 100) % OPEN
    other = Rollout(
        context=Context(0, "doc0", changed_ids),
        positions=rollout.positions,
        thoughts=rollout.thoughts,
        entropy=rollout.entropy,
        nll=rollout.nll,
    )
    thought, think, _ = in_tree(model, rollout, "segmented")
    other_thought, other_think, _ = in_tree(model, other, "segmented")
    assert torch.equal(thought, other_thought)
    assert (think - other_think).abs().min() > 1e-6  # the change was seen where it should be


def test_layout_refuses_what_is_no_forest() -> None:
    ids = torch.arange(1, 4)
    for segments in (
        [(ids, 0, 0)],  # its own parent
        [(ids, -1, 0), (ids, 1, 1)],  # a parent that comes later
        [(ids, -1, 0), (ids, 0, 4)],  # sees more than there is
        [(ids[:0], -1, 0)],  # empty
    ):
        with pytest.raises(ValueError, match="segment"):
            TokenTree.build(segments)


def test_token_counts() -> None:
    rollout = CASES["uneven thoughts"]
    # Branches: open + sampled + forced close + horizon, whose last token predicts nothing.
    branches = (1 + 5 + 2) + (1 + 2 + 1 + 2) + (1 + 1 + 2) + (1 + 7 + 1 + 2)
    # Open + sampled: the last of them, or a close marker, predicts the continuation alone.
    learning = (1 + 4) + (1 + 1) + 1 + (1 + 6)
    for reads, page, page_learning in (
        (LossReads(), 11 + HORIZON - 1, None),
        (LossReads(context=True), 19, None),
        (LossReads(continuation=False), 11 + HORIZON - 1, 11),
        (LossReads(context=True, continuation=False), 19, 19),
    ):
        tree = build([rollout], reads).tree
        assert tree_tokens(rollout, HORIZON, reads) == page + branches == tree.layout.num_tokens
        learns = learning_tokens(rollout, HORIZON, reads)
        assert learns == (page + branches if reads.continuation else page_learning + learning)
        assert learns == tree.num_learning
    assert unshared_tokens(rollout, HORIZON) == 2 * (4 + 11) + branches


def test_a_horizon_of_one_has_no_continuation_in_the_tree() -> None:
    rollout = CASES["uneven thoughts"]
    tree = build([rollout], horizon=1)
    assert len(tree.tree.layout.lengths) == 1 + 4
    assert tree.tree.layout.num_tokens == tree_tokens(rollout, 1) == 11 + 6 + 4 + 2 + 9
    ends = [tree.tree.layout.offsets[s + 1] - 1 for s in range(1, 5)]
    assert tree.think_rows_PGH.flatten().tolist() == ends
    assert tree.no_think_rows_PH.flatten().tolist() == [3, 10]


@pytest.mark.parametrize("implementation", ["segmented", "dense"])
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("horizon", [1, HORIZON])
@pytest.mark.parametrize("case", CASES)
def test_what_does_not_learn_is_computed_the_same_and_has_no_graph(
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    horizon: int,
    context: bool,
    implementation: str,
) -> None:
    """Two passes over a tree in another order against one, with a loss on thoughts and page."""
    rollouts = [CASES[case], make_rollout(9, (2, 5), [[(2, True), (4, False)]] * 2, seed=7)]
    rollouts = rollouts[: 2 if len(CASES[case].thoughts[0]) == 2 else 1]
    model = load(model_folders["llama"])
    outcomes = []
    for reads in (LossReads(context), LossReads(context, continuation=False)):
        tree = build(rollouts, reads, horizon)
        monkeypatch.setenv(
            "RNTP_TREE_ATTENTION", implementation if not reads.continuation else "dense"
        )
        model.hf.zero_grad()
        hidden = tree.tree.hidden(model)
        if not reads.continuation:
            alone = tree.tree.learning_part().hidden(model)
            torch.testing.assert_close(alone, hidden[: len(alone)], rtol=0, atol=0)
        rows = [tree.thought_rows, tree.context_rows, tree.think_rows_PGH, tree.no_think_rows_PH]
        thoughts, page, think, empty = (hidden[r.flatten()] for r in rows)
        weights = torch.linspace(-1, 2, hidden.shape[1], dtype=hidden.dtype)
        ((thoughts @ weights).sum() + (page @ weights).square().sum()).backward()
        gradients = {name: p.grad for name, p in model.hf.named_parameters() if p.grad is not None}
        outcomes.append(([x.detach() for x in (thoughts, page, think, empty)], gradients))
        silent = torch.arange(len(hidden)) >= tree.tree.num_learning
        assert bool(silent.any()) is not reads.continuation
    (wanted, wanted_gradients), (found, gradients) = outcomes
    for mine, true in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == wanted_gradients.keys()
    for name, true in wanted_gradients.items():
        assert (gradients[name] - true).abs().max() <= 1e-12 * true.abs().max(), name
