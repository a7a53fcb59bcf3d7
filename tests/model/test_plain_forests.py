"""Forests without sharing: the numbers and gradients of the tree, and of every plain sequence."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_models import load_plain
from rntp_kernels import TreeLayout
from test_forward import HORIZON, config_of, uneven

from rntp.model import LanguageModel, load_model, unshared
from rntp.model.microbatches import microbatches
from rntp.model.reading import LossReads
from rntp.model.sharding import checkpoint_activations
from rntp.model.thought_tree import TokenTree
from rntp.model.tree_sizes import plain_tokens
from rntp.model.unshared import grouped, sequences
from rntp.objective.forward import build_tree, forward, forward_with_gradients
from rntp.objective.loss import loss
from rntp.objective.quantities import Counts, OtherLogprobs, loss_reads
from rntp.objective.rewards_and_advantages import compute_rewards, sampler_logp
from rntp.rollout.engine import InProcessEngine
from rntp.types import Context, Rollout

# A page with branches at its end, inside, and of branches; a second page; a branch that sees
# nothing of its parent.
SEGMENTS = [(20, -1, 0), (5, 0, 7), (4, 1, 5), (3, 1, 5), (6, 0, 20), (2, 4, 3), (9, -1, 0)]
SEGMENTS += [(3, 6, 0)]
HYBRIDS = ["mamba", "mamba2", "jamba", "qwen3-next", "granite-hybrid", "lfm2", "bloom", "rwkv"]


def forest(seed: int = 0) -> TokenTree:
    draw = torch.Generator().manual_seed(seed)
    return TokenTree.build(
        [(torch.randint(1, 300, (n,), generator=draw), p, a) for n, p, a in SEGMENTS]
    )


def pair(folder: Path) -> tuple[LanguageModel, LanguageModel]:
    """One model in float64 throughout, with and without sharing."""
    both = [load_model(str(folder), dtype=torch.float64, sharing=s) for s in ("tree", "none")]
    for model in both:
        compute_norms_in_float64(model.hf)
    return both[0], both[1]


@pytest.fixture(scope="module")
def shared(model_folders: dict[str, Path]) -> LanguageModel:
    return pair(model_folders["llama"])[0]


@pytest.fixture(scope="module")
def plain(model_folders: dict[str, Path]) -> LanguageModel:
    return pair(model_folders["llama"])[1]


@pytest.fixture(scope="module")
def rollouts(shared: LanguageModel) -> list[Rollout]:
    draw = torch.Generator().manual_seed(1)
    contexts = [
        Context(n, f"doc{n}", torch.randint(1, 318, (30 - 3 * n,), generator=draw))
        for n in range(3)
    ]
    engine = InProcessEngine(
        shared,
        thoughts=3,
        budget=6,
        answer_tokens=3,
        temperature=1.0,
        seed=0,
        slots=32,
        draw=uneven(shared),
    )
    return engine.sample(contexts, lambda c, next_token: (5, len(c) - HORIZON))


def test_a_segment_that_goes_on_has_no_sequence_of_its_own() -> None:
    layout = forest().layout
    ends, read = sequences(layout)
    # The page ends in 5, 1 in 2; 3, 6 and 7 by themselves.
    assert ends == [2, 3, 4, 5, 6, 7]
    assert read[layout.offsets[0]].tolist() == [ends.index(4), 0]
    assert read[layout.offsets[1] + 2].tolist() == [ends.index(2), 7 + 2]
    assert read[layout.offsets[5]].tolist() == [ends.index(5), 20 + 3]
    # From segment 5 on, nothing of those before is read.
    ends, read = sequences(layout, 5)
    assert ends == [5, 6, 7]
    assert len(read) == 2 + 9 + 3


def test_like_lengths_share_a_forward() -> None:
    assert grouped([9, 50, 8, 9], together=True) == [[2, 0, 3], [1]]
    assert grouped([9, 50, 8, 9], together=False) == [[2], [0], [3], [1]]
    assert grouped([9, 50, 8], together=True, whole=True) == [[2, 0, 1]]
    assert grouped([], together=True) == []


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_group_is_filled_up_by_more_than_an_eighth(lengths: list[int]) -> None:
    groups = grouped(lengths, together=True)
    assert sorted(n for group in groups for n in group) == list(range(len(lengths)))
    for group in groups:
        padded = max(lengths[n] for n in group) * len(group)
        assert padded - sum(lengths[n] for n in group) <= padded / 8


def test_hidden_states_and_gradients_of_a_forest_are_the_trees(
    shared: LanguageModel, plain: LanguageModel
) -> None:
    draw = torch.Generator().manual_seed(5)
    weights = torch.randn(forest().layout.num_tokens, 32, dtype=torch.float64, generator=draw)
    found = []
    for model in (shared, plain):
        model.hf.zero_grad()
        hidden = forest().hidden(model)
        (hidden * weights).sum().backward()
        found.append((hidden.detach(), {n: p.grad for n, p in model.hf.named_parameters()}))
    (tree, of_tree), (own, of_own) = found
    assert tree.std() > 0.5
    torch.testing.assert_close(own, tree, rtol=0, atol=1e-12)
    for name, gradient in of_tree.items():
        assert float((of_own[name] - gradient).norm()) <= 1e-12 * float(gradient.norm()), name


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize("together", [True, False])
def test_rows_of_any_model_are_those_of_its_plain_sequences(name: str, together: bool) -> None:
    """And nothing else: each against a forward of its own, by transformers alone."""
    model = load_plain(name)
    assert model.plain is not None
    model.plain = replace(model.plain, together=together)
    tree = forest()
    with torch.no_grad():
        logits = model.logits(tree.hidden(model))
        for segment, length in enumerate(tree.layout.lengths):
            ids = tree.token_ids[tree.layout.unshared(segment)]
            wanted = model.hf(input_ids=ids[None], use_cache=False).logits[0, -length:]
            own = logits[tree.layout.offsets[segment] : tree.layout.offsets[segment + 1]]
            assert wanted.std() > 0.3
            torch.testing.assert_close(own, wanted, rtol=0, atol=2e-5 * float(wanted.std()))


@pytest.mark.parametrize("name", ["mamba", "qwen3-next", "bloom"])
def test_gradients_of_any_model_are_those_of_its_plain_sequences(name: str) -> None:
    model, tree = load_plain(name, torch.float64), forest()
    draw = torch.Generator().manual_seed(5)
    weights = torch.randn(tree.layout.num_tokens, 320, dtype=torch.float64, generator=draw)
    total = (model.logits(tree.hidden(model)) * weights).sum()
    total.backward()
    own = {n: p.grad.clone() for n, p in model.hf.named_parameters() if p.grad is not None}
    model.hf.zero_grad()
    for segment, length in enumerate(tree.layout.lengths):
        ids = tree.token_ids[tree.layout.unshared(segment)]
        logits = model.hf(input_ids=ids[None], use_cache=False).logits[0, -length:]
        rows = weights[tree.layout.offsets[segment] : tree.layout.offsets[segment + 1]]
        (logits * rows).sum().backward()
    assert len(own) > 10
    for parameter_name, parameter in model.hf.named_parameters():
        wanted = parameter.grad
        if wanted is None or float(wanted.norm()) < 1e-9:  # keys' biases: softmax cancels them
            continue
        gap = float((own[parameter_name] - wanted).norm() / wanted.norm())
        assert gap < 1e-4, parameter_name  # norms and states of transformers work in float32


OPTIONS = [
    (),
    ("objective.continuation_weight=0", "objective.ntp_weight=0"),
    ("objective.continuation_weight=0", "objective.ntp_weight=0.3"),
    ("objective.kl_weight=0", "objective.entropy_weight=0.1", "objective.ntp_weight=0"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("tokens", [10**6, 60])
def test_a_step_is_the_trees(
    shared: LanguageModel,
    plain: LanguageModel,
    rollouts: list[Rollout],
    options: tuple[str, ...],
    tokens: int,
) -> None:
    """Log-probs, rewards, loss and gradients; also where continuations have no gradient."""
    config = config_of(*options)
    reads, found = loss_reads(config), []
    for model in (shared, plain):
        model.hf.zero_grad()
        counts, total, seen = Counts.of(rollouts, HORIZON), 0.0, []
        for batch in microbatches(
            rollouts, tokens=tokens, horizon=HORIZON, reads=reads, shares=model.shares
        ):
            tree = build_tree(model, batch, HORIZON, reads)
            outputs = forward(model, tree, temperature=1.0)
            rewarded = compute_rewards(outputs, tree, batch, config)
            if not reads.continuation:  # once more, from a tree of what learns
                live_P = rewarded.live_P(config)
                outputs = forward_with_gradients(
                    model, batch, outputs, live_P, HORIZON, reads, temperature=1.0
                )
            part = loss(outputs, tree, rewarded, counts, config, OtherLogprobs(sampler_logp(batch)))
            part.total.backward()
            total += float(part.total.detach())
            seen.append((outputs.detached(), rewarded))
        gradients = {n: p.grad.clone() for n, p in model.hf.named_parameters()}
        found.append((total, gradients, seen))
    (tree_loss, tree_gradients, tree_seen), (own_loss, own_gradients, own_seen) = found
    assert own_loss == pytest.approx(tree_loss, rel=1e-12, abs=1e-12)
    for name, gradient in tree_gradients.items():
        gap = float((own_gradients[name] - gradient).norm() / gradient.norm())
        assert gap < 1e-12, name

    def rows(seen, pick):
        return torch.cat([pick(outputs, rewarded).flatten() for outputs, rewarded in seen])

    for pick in (
        lambda s, _: s.thought_logp_M,
        lambda s, _: s.think_logp_PGH,
        lambda s, _: s.no_think_logp_PH,
        lambda s, _: s.thought_entropy_M,
        lambda _, j: j.reward_PG,
        lambda _, j: j.advantage_PG,
    ):
        own, tree_rows = rows(own_seen, pick), rows(tree_seen, pick)
        assert tree_rows.std() > 1e-3
        torch.testing.assert_close(own, tree_rows, rtol=0, atol=1e-11)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("continuation", [False, True])
def test_tokens_are_counted_as_they_are_computed(
    plain: LanguageModel,
    rollouts: list[Rollout],
    monkeypatch: pytest.MonkeyPatch,
    context: bool,
    continuation: bool,
) -> None:
    computed = {True: 0, False: 0}
    original = unshared.run_plain

    def counted(hf, how, ids_BS, **more):
        # With the filling; a sequence at a time has none.
        computed[torch.is_grad_enabled()] += ids_BS.numel()
        return original(hf, how, ids_BS, **more)

    monkeypatch.setattr(unshared, "run_plain", counted)
    alone = replace(plain, plain=replace(plain.plain, together=False))
    reads = LossReads(context, continuation)
    for some in ([rollouts[0]], rollouts):
        computed.update({True: 0, False: 0})
        build_tree(alone, some, HORIZON, reads).tree.hidden(alone)
        counts = [plain_tokens(r, HORIZON, reads) for r in some]
        assert computed[True] == sum(learning for _, learning in counts)
        assert sum(computed.values()) == sum(every for every, _ in counts)


def test_microbatches_count_what_is_computed(rollouts: list[Rollout]) -> None:
    every = [plain_tokens(r, HORIZON)[0] for r in rollouts]
    assert min(every) > 100
    pieces = microbatches(rollouts, tokens=sum(every[:2]), horizon=HORIZON, shares=False)
    assert [len(piece) for piece in pieces] == [2, 1]
    assert len(microbatches(rollouts, tokens=sum(every[:2]), horizon=HORIZON)) == 1


def test_one_page_alone_is_a_forest() -> None:
    layout = TreeLayout((4,), (-1,), (0,))
    ends, read = sequences(layout)
    assert ends == [0]
    assert read.tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]


@pytest.mark.parametrize("name", ["qwen3-next", "mamba", "mixtral"])
@pytest.mark.parametrize("layers_too", [False, True])
def test_what_is_larger_than_a_microbatch_is_computed_again_in_pieces(
    name: str, layers_too: bool
) -> None:
    """The same gradients, of routers too, from no more saved tensors than one piece has."""
    tree, found = forest(), []
    for most in (10**6, 40):
        model = load_plain(name, torch.float64)
        assert model.plain is not None
        model.plain = replace(model.plain, most_tokens=most)
        if layers_too:
            checkpoint_activations(model.hf)
        kept: list[int] = []

        def keep(x: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            trunk = tree.run(model, watch=True)
        assert len(trunk.routed) == (0 if name == "mamba" else 2)
        total = trunk.hidden.square().sum()
        total = total + sum(r.logits.square().sum() for r in trunk.routed)
        total.backward()
        gradients = {n: p.grad for n, p in model.hf.named_parameters() if p.grad is not None}
        found.append((float(total), gradients, sum(kept)))
    (whole, wanted, before), (again, own, after) = found
    assert again == pytest.approx(whole, rel=1e-9)
    assert after < before / 5
    assert wanted.keys() == own.keys()
    for parameter, gradient in wanted.items():
        assert float((own[parameter] - gradient).norm()) <= 1e-5 * float(gradient.norm()), parameter


def test_no_forward_is_larger_than_a_microbatch() -> None:
    lengths = [30, 10, 30, 31, 11]
    assert grouped(lengths, together=True, most=62) == [[1, 4], [0, 2], [3]]
    assert grouped([100, 100], together=True, most=50) == [[0], [1]]
