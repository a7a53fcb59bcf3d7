"""The reading window: a thought is all that reaches a continuation of what stood before it."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, tiny_tokenizer
from plain_models import save_plain
from rntp_kernels.tree_attention import dense_mask
from test_thought_tree import CASES, CLOSE, HORIZON, OPEN, load, make_rollout

from rntp.errors import ConfigError
from rntp.model import LanguageModel, load_model
from rntp.model.forgetful import bare_logp, memory_logp
from rntp.model.reading import LossReads, read_behind, window_start
from rntp.model.thought_tree import ThoughtTree, thought_branch
from rntp.model.tokenizer import start_id
from rntp.model.tree_sizes import learning_tokens, plain_tokens, tree_tokens, unshared_tokens
from rntp.objective.forward import build_tree, forward, forward_with_gradients
from rntp.objective.reference_model import Reference
from rntp.rollout.interleaved import splice
from rntp.types import Rollout

START = 0  # the tiny tokenizers' end token
PAGE = CASES["uneven thoughts"]  # 20 tokens, positions 4 and 11
OTHER = make_rollout(17, (6, 12), [[(2, True), (4, False)], [(1, True), (3, False)]], seed=7)
READS = [LossReads(c, r, w) for c, r, w in product((False, True), (False, True), (0, 3))]


def build(rollouts: list[Rollout], reads: LossReads) -> ThoughtTree:
    return ThoughtTree.build(
        rollouts,
        think_open_id=OPEN,
        think_close_id=CLOSE,
        horizon=HORIZON,
        reads=reads,
        start_id=START,
    )


def weighted(parts: list[torch.Tensor]) -> torch.Tensor:
    """A loss that weighs every log-prob differently, so that no error can cancel."""
    return sum(
        (part.flatten() * torch.linspace(-1, 2, part.numel(), dtype=part.dtype) * (i + 1)).sum()
        for i, part in enumerate(parts)
    )


def learnt(parts: list[torch.Tensor], reads: LossReads) -> torch.Tensor:
    """The loss on what learns: thoughts, pages, readings with a memory and without."""
    thought, context, think, bare = parts
    return weighted([thought, context, *([think, bare] if reads.continuation else [])])


def fresh(
    model: LanguageModel, rollouts: list[Rollout], reads: LossReads
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Thoughts, pages, readings with a memory and without; and behind the whole context: a forward
    of each sequence by the model's own attention, from nothing but its token ids."""
    start = torch.tensor([START])

    def logp(sequence: torch.Tensor) -> torch.Tensor:
        logits = model.hf(sequence[None]).logits[0]
        return torch.log_softmax(logits[:-1], -1).gather(1, sequence[1:, None])[:, 0]

    thoughts, thinks, pages, bares, wholes = [], [], [], [], []
    for rollout in rollouts:
        ids = rollout.context.token_ids
        if reads.context:
            pages.append(logp(ids))
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            behind = ids[position - reads.window : position + HORIZON]
            bares.append(logp(torch.cat([start, behind]))[-HORIZON:])
            wholes.append(logp(ids[: position + HORIZON])[-HORIZON:])
            for thought in group:
                memory = thought_branch(thought.sampled_ids, thought.closed, OPEN, CLOSE)
                drawn = logp(torch.cat([ids[:position], memory]))[position:]
                thoughts.append(drawn[: len(thought.sampled_ids)])
                thinks.append(logp(torch.cat([start, memory, behind]))[-HORIZON:])
    nothing = torch.zeros(0, dtype=torch.float64)
    parts = [thoughts, [nothing, *pages], thinks, bares]
    return [torch.cat(part) for part in parts], torch.cat(wholes)


def gradients(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.hf.named_parameters()}


@pytest.mark.parametrize("reads", READS, ids=str)
@pytest.mark.parametrize(
    ("architecture", "implementation"),
    [*((name, "segmented") for name in ARCHITECTURES), ("llama", "dense"), ("llama", "unshared")],
)
def test_values_and_gradients_are_those_of_fresh_sequences(
    model_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    implementation: str,
    reads: LossReads,
) -> None:
    model = load(model_folders[architecture])
    if implementation == "unshared":
        plain = load_model(
            str(model_folders[architecture]), dtype=torch.float64, sharing="none"
        ).plain
        model = replace(model, plain=plain)
        model.hf.set_attn_implementation("sdpa")
    else:
        monkeypatch.setenv("RNTP_TREE_ATTENTION", implementation)
    rollouts = [PAGE, OTHER]
    found = forward(model, build_tree(model, rollouts, HORIZON, reads), temperature=1.0)
    context = torch.zeros(0, dtype=torch.float64)
    context = context if found.context_logp is None else found.context_logp
    bare = found.no_think_logp_PH if found.bare_logp_PH is None else found.bare_logp_PH
    parts = [found.thought_logp_M, context, found.think_logp_PGH.flatten(), bare.flatten()]
    learnt(parts, reads).backward()
    ours = gradients(model)
    assert found.think_logp_PGH.requires_grad is reads.continuation

    model.hf.zero_grad()
    model.hf.set_attn_implementation("sdpa")
    wanted, whole = fresh(model, rollouts, reads)
    learnt(wanted, reads).backward()
    for mine, true in zip(
        [*parts, found.whole_logp_PH.flatten()],
        [*wanted, whole],
        strict=True,
    ):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    for name, true in gradients(model).items():
        error = (ours[name] - true).abs().max() / true.abs().max()
        assert error <= 1e-12, (name, float(error))
        assert true.abs().max() > 0, name  # equality of zeros would prove nothing


@pytest.mark.parametrize("reads", READS, ids=str)
def test_readings_see_a_memory_a_window_and_nothing_else(reads: LossReads) -> None:
    tree = build([PAGE, OTHER], reads)
    ids, mask = tree.tree.token_ids, dense_mask(tree.tree.layout)
    number = 0
    for rollout in (PAGE, OTHER):
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            behind = read_behind(rollout, position, reads.window, HORIZON)
            assert len(behind) == reads.window + HORIZON - 1
            bare = tree.no_think_rows_PH[number, -1]
            assert ids[mask[bare]].tolist() == [START, *behind.tolist()]
            for g, thought in enumerate(group):
                memory = thought_branch(thought.sampled_ids, thought.closed, OPEN, CLOSE)
                last = tree.think_rows_PGH[number, g, -1]
                assert ids[mask[last]].tolist() == [START, *memory.tolist(), *behind.tolist()]
            number += 1
    # And nobody sees a reading but its own later tokens: no page, no thought, no other reading.
    rows = {*tree.think_rows_PGH.flatten().tolist(), *tree.no_think_rows_PH.flatten().tolist()}
    segments = range(len(tree.tree.layout.lengths))
    readings = [s for s in segments if rows & {*tree.tree.rows(s).tolist()}]
    assert len(readings) == 4 + 8
    for segment in readings:
        own = tree.tree.rows(segment)
        others = torch.ones(len(ids), dtype=torch.bool)
        others[own] = False
        assert not mask[others][:, own].any()


@pytest.mark.parametrize("window", [0, 3])
def test_exchanging_what_is_lost_changes_nothing_that_is_read(
    model_folders: dict[str, Path], window: int
) -> None:
    model = load(model_folders["llama"])
    rollout = replace(OTHER, positions=(12,), thoughts=OTHER.thoughts[1:])
    lost = window_start(rollout, 12, window)
    assert lost == 12 - window
    changed = rollout.context.token_ids.clone()
    changed[:lost] = (changed[:lost] + 100) % OPEN
    other = replace(rollout, context=replace(rollout.context, token_ids=changed))
    reads = LossReads(window=window)
    one, two = (
        forward(model, build_tree(model, [r], HORIZON, reads), temperature=1.0)
        for r in (rollout, other)
    )
    assert torch.equal(one.think_logp_PGH, two.think_logp_PGH)
    assert torch.equal(one.no_think_logp_PH, two.no_think_logp_PH)
    # The change was seen where it should be: by the thought, and behind the whole context.
    assert (one.thought_logp_M - two.thought_logp_M).abs().min() > 1e-6
    assert (one.whole_logp_PH - two.whole_logp_PH).abs().min() > 1e-6
    today = [
        forward(model, build_tree(model, [r], HORIZON), temperature=1.0).think_logp_PGH
        for r in (rollout, other)
    ]
    assert (today[0] - today[1]).abs().min() > 1e-6  # without a window it reaches the reading


def test_memory_and_window_reach_the_reading(model_folders: dict[str, Path]) -> None:
    model, reads = load(model_folders["llama"]), LossReads(window=3)
    found = forward(model, build_tree(model, [PAGE], HORIZON, reads), temperature=1.0)
    gain = found.think_logp_PGH - found.no_think_logp_PH[:, None]
    assert gain.abs().min() > 1e-6
    assert (found.think_logp_PGH[:, 0] - found.think_logp_PGH[:, 1]).abs().min() > 1e-6
    wider = forward(model, build_tree(model, [PAGE], HORIZON, LossReads(window=4)), temperature=1.0)
    assert (wider.think_logp_PGH - found.think_logp_PGH).abs().min() > 1e-6


@pytest.mark.parametrize("reads", READS, ids=str)
def test_tokens_are_counted_as_they_are(reads: LossReads) -> None:
    for rollouts in ([PAGE], [OTHER], [PAGE, OTHER]):
        tree = build(rollouts, reads).tree
        assert sum(tree_tokens(r, HORIZON, reads) for r in rollouts) == tree.layout.num_tokens
        assert sum(learning_tokens(r, HORIZON, reads) for r in rollouts) == tree.num_learning
        assert (tree.num_learning < tree.layout.num_tokens) is not reads.continuation
    # By hand: thoughts of 5, 2, 1, 7 tokens, of which two are closed.
    memories = 6 + 4 + 2 + 9
    alone = unshared_tokens(PAGE, HORIZON, reads.window)
    behind = 1 + reads.window + HORIZON - 1
    assert alone == 2 * (4 + 11) + memories + memories + 4 * behind


@pytest.mark.parametrize("reads", READS, ids=str)
def test_plain_sequences_are_counted_as_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: LossReads
) -> None:
    model = load_model(save_plain("mamba", tmp_path), sharing="none")
    computed = {True: 0, False: 0}
    real = model.hf.base_model.forward

    def counted(input_ids: torch.Tensor, **given: object) -> object:
        read = (input_ids != 0).sum() + (input_ids[:, 0] == START).sum()  # the rest fills up
        computed[torch.is_grad_enabled()] += int(read)
        return real(input_ids=input_ids, **given)

    monkeypatch.setattr(model.hf.base_model, "forward", counted)
    rollouts = [PAGE, OTHER]
    build_tree(model, rollouts, HORIZON, reads).tree.hidden(model)
    counts = [plain_tokens(r, HORIZON, reads) for r in rollouts]
    assert computed[True] == sum(learning for _, learning in counts)
    assert sum(computed.values()) == sum(every for every, _ in counts)


def test_another_epoch_computes_what_learns_alone(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    reads = LossReads(context=True, continuation=False, window=3)
    rollouts = [PAGE, OTHER]
    first = forward(model, build_tree(model, rollouts, HORIZON, reads), temperature=1.0)
    again = forward_with_gradients(
        model, rollouts, first, torch.ones(4, dtype=torch.bool), HORIZON, reads, temperature=1.0
    )
    assert torch.equal(again.think_logp_PGH, first.think_logp_PGH)
    torch.testing.assert_close(again.thought_logp_M, first.thought_logp_M, rtol=1e-12, atol=0)
    torch.testing.assert_close(again.context_logp, first.context_logp, rtol=1e-12, atol=0)
    assert again.thought_logp_M.requires_grad


def test_other_weights_read_the_same_window(model_folders: dict[str, Path]) -> None:
    model, reads = load(model_folders["llama"]), LossReads(window=3)
    found = forward(model, build_tree(model, [PAGE, OTHER], HORIZON, reads), temperature=1.0)
    reference = Reference(model, torch.float64, None)
    bare = reference.no_think([PAGE, OTHER], HORIZON, 3)
    torch.testing.assert_close(bare, found.no_think_logp_PH, rtol=1e-10, atol=1e-12)
    at_PH, _ = reference.on_tree(build_tree(model, [PAGE, OTHER], HORIZON, reads), 1.0)
    torch.testing.assert_close(at_PH, found.no_think_logp_PH, rtol=1e-10, atol=1e-12)
    longer = bare_logp(model, [PAGE, OTHER], 4, HORIZON)
    assert (longer - bare).abs().min() > 1e-6
    assert (reference.no_think([PAGE, OTHER], HORIZON) - bare).abs().min() > 1e-6


def test_memories_alone_are_read_as_in_a_tree(model_folders: dict[str, Path]) -> None:
    """What controls are scored by, for less: neither page nor policy is computed beside them."""
    model, rollouts = load(model_folders["llama"]), [PAGE, OTHER]
    for window in (0, 3):
        tree = build_tree(model, rollouts, HORIZON, LossReads(window=window))
        wanted = forward(model, tree, temperature=1.0).think_logp_PGH
        for most in (1 << 14, 30):  # all at once, and some at a time
            found = memory_logp(model, rollouts, window, HORIZON, most)
            assert [len(one) for one in found] == [len(r.positions) for r in rollouts]
            torch.testing.assert_close(torch.cat(found), wanted, rtol=1e-10, atol=1e-12)
    bare = replace(PAGE, positions=(), thoughts=())
    assert memory_logp(model, [bare, OTHER], 3, HORIZON)[0].shape == (0, 0, HORIZON)


def test_earlier_thoughts_in_the_window_come_along() -> None:
    """Interleaved: the window has so many tokens of the page, and the thoughts among them whole."""
    page = make_rollout(20, (12,), [[(2, True), (3, False)]], seed=2)
    bare_ids = page.context.token_ids.tolist()
    near, far = torch.tensor([OPEN, 7, 8, CLOSE]), torch.tensor([OPEN, 9, CLOSE])
    context = splice(splice(page.context, 4, far), 10, near)
    later = replace(page, context=context, positions=(12 + 7,))
    for window, wanted in (
        (3, [bare_ids[9], *near.tolist(), *bare_ids[10:12]]),
        (2, bare_ids[10:12]),  # the thought stands before the first of them
        (9, [bare_ids[3], *far.tolist(), *bare_ids[4:10], *near.tolist(), *bare_ids[10:12]]),
        (0, []),
        (50, [*bare_ids[:4], *far.tolist(), *bare_ids[4:10], *near.tolist(), *bare_ids[10:12]]),
    ):
        behind = read_behind(later, 19, window, HORIZON)
        assert behind.tolist() == [*wanted, *bare_ids[12 : 12 + HORIZON - 1]]
        reads = LossReads(window=window)
        tree = build([later], reads).tree
        assert tree_tokens(later, HORIZON, reads) == tree.layout.num_tokens


def test_a_tokenizer_without_any_start_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    assert start_id(tokenizer) == START
    tokenizer.bos_token = "a"
    assert start_id(tokenizer) == tokenizer.get_vocab()["a"]
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"reading\.window"):
        start_id(tokenizer)
