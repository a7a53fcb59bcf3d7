"""Thoughts that see earlier ones: what stands in each context, and what is computed from it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64, tiny_run
from test_config import minimal

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel, load_model
from rntp.model.reading import LossReads
from rntp.model.thought_tree import thought_branch
from rntp.objective.forward import build_tree, forward
from rntp.objective.quantities import Counts
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.interleaved import InterleavedEngine, on_pages, splice
from rntp.run.log import read_metrics, read_rollouts
from rntp.trainer import Trainer
from rntp.training.estimate import Tokens
from rntp.types import Context, EarlierThought, NextTokenStats, Rollout

BUDGET, HORIZON, POSITIONS = 6, 3, (4, 5, 12)


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    loaded = load_model(str(model_folders["llama"]), dtype=torch.float64)
    compute_norms_in_float64(loaded.hf)
    return loaded


def context(ordinal: int, length: int = 24) -> Context:
    generator = torch.Generator().manual_seed(100 + ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 318, (length,), generator=generator))


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    assert not context.seen  # positions are chosen on the bare page
    return POSITIONS


def isolated(model: LanguageModel) -> InProcessEngine:
    return InProcessEngine(model, thoughts=3, budget=BUDGET, temperature=1.0, seed=5, slots=48)


def sampled(model: LanguageModel, contexts: list[Context]) -> list[Rollout]:
    return InterleavedEngine(isolated(model), model, seed=5).sample(contexts, place)


def branches(model: LanguageModel, rollout: Rollout) -> list[torch.Tensor]:
    markers = model.think_open_id, model.think_close_id
    return [thought_branch(t.sampled_ids, t.closed, *markers) for t in rollout.thoughts[0]]


def test_each_context_is_the_page_with_one_thought_of_every_position_before(
    model: LanguageModel,
) -> None:
    pages = [context(n, 24 - n) for n in range(4)]
    rollouts = sampled(model, pages)
    assert [r.context.ordinal for r in rollouts] == [n for n in range(4) for _ in POSITIONS]
    picks = []
    for n, page in enumerate(pages):
        first, second, third = rollouts[3 * n : 3 * n + 3]
        assert [r.page_positions for r in (first, second, third)] == [(p,) for p in POSITIONS]
        assert torch.equal(first.context.token_ids, page.token_ids)
        x, (one, two) = page.token_ids, (s.token_ids for s in third.context.seen)
        # The very tokens: a thought of the group before, with its markers, where it was thought.
        of_first = [torch.equal(one, b) for b in branches(model, first)]
        of_second = [torch.equal(two, b) for b in branches(model, second)]
        assert any(of_first)
        assert any(of_second)
        picks += [of_first.index(True), of_second.index(True)]
        assert one[0] == model.think_open_id
        assert one[-1] == model.think_close_id
        assert torch.equal(second.context.token_ids, torch.cat([x[:4], one, x[4:]]))
        whole = torch.cat([x[:4], one, x[4:5], two, x[5:]])
        assert torch.equal(third.context.token_ids, whole)
        assert third.positions == (12 + len(one) + len(two),)
        at = third.positions[0]
        assert torch.equal(third.context.token_ids[at:], x[12:])
    assert set(picks) == {0, 1, 2}  # drawn, not always the first


def test_log_probs_are_those_of_one_plain_sequence(model: LanguageModel) -> None:
    """x[:p1] thought x[p1:p2] thought x[p2:p2+H], by the model's own attention."""
    rollouts = sampled(model, [context(0), context(1, 19)])
    scores = forward(
        model, build_tree(model, rollouts, HORIZON, LossReads(context=True)), temperature=1.0
    )
    sampler = torch.cat([t.sampled_logprobs for r in rollouts for t in r.thoughts[0]])
    model.hf.set_attn_implementation("sdpa")
    think, empty, thought = [], [], []
    for rollout in rollouts:
        ids, (at,) = rollout.context.token_ids, rollout.positions
        truth = ids[at : at + HORIZON]

        def plainly(*pieces: torch.Tensor) -> torch.Tensor:
            whole = torch.cat(pieces)
            logp = model.hf(whole[None]).logits[0, :-1].log_softmax(-1)
            return logp.gather(1, whole[1:, None])[:, 0].detach()

        empty.append(plainly(ids[:at], truth)[-HORIZON:])
        for branch, each in zip(branches(model, rollout), rollout.thoughts[0], strict=True):
            whole = plainly(ids[:at], branch, truth)
            think.append(whole[-HORIZON:])
            thought.append(whole[at:][: len(each.sampled_ids)])
    model.hf.set_attn_implementation("rntp")
    torch.testing.assert_close(
        scores.think_logp_PGH.detach().flatten(), torch.cat(think), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(
        scores.no_think_logp_PH.flatten(), torch.cat(empty), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(
        scores.thought_logp_M.detach(), torch.cat(thought), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(sampler, torch.cat(thought).float(), rtol=0, atol=1e-5)
    # And the sampler's no-think prediction at each position is the one that sees earlier thoughts.
    nll = torch.cat([r.nll for r in rollouts])
    torch.testing.assert_close(nll.double(), -scores.no_think_logp_PH[:, 0], rtol=0, atol=1e-5)
    bare = build_tree(model, on_pages(rollouts), HORIZON)
    unseen = forward(model, bare, temperature=1.0).no_think_logp_PH
    moved = (unseen - scores.no_think_logp_PH).abs().amax(dim=1)
    assert moved[[0, 3]].max() < 1e-12  # the first of each page sees no thought …
    assert moved[[1, 2, 4, 5]].min() > 1e-4  # … and the others do


def test_the_page_is_read_once_for_the_next_token_loss(model: LanguageModel) -> None:
    pages = [context(0), context(1, 19)]
    alone = isolated(model).sample(pages, place)
    rollouts = sampled(model, pages)
    scores, plain = (
        forward(
            model, build_tree(model, r, HORIZON, LossReads(context=True)), temperature=1.0
        ).context_logp
        for r in (rollouts, alone)
    )
    assert scores is not None
    assert plain is not None
    assert len(scores) == Counts.of(rollouts, HORIZON).context == 23 + 18
    torch.testing.assert_close(scores, plain, rtol=1e-12, atol=0)
    # In a microbatch that holds later rounds alone there is nothing to count.
    later = [r for r in rollouts if r.context.seen]
    found = forward(
        model, build_tree(model, later, HORIZON, LossReads(context=True)), temperature=1.0
    )
    assert found.context_logp is not None
    assert found.context_logp.shape == (0,)
    assert Counts.of(later, HORIZON).context == 0
    without = forward(model, build_tree(model, later, HORIZON), temperature=1.0)
    torch.testing.assert_close(found.no_think_logp_PH, without.no_think_logp_PH, rtol=1e-12, atol=0)


def test_seen_thoughts_where_continuations_do_not_learn(model: LanguageModel) -> None:
    """Pages with thoughts in them end at their position; the bare ones learn all of it."""
    rollouts = sampled(model, [context(0), context(1, 19)])
    outcomes = []
    for reads in (LossReads(context=True), LossReads(context=True, continuation=False)):
        model.hf.zero_grad()
        scores = forward(model, build_tree(model, rollouts, HORIZON, reads), temperature=1.0)
        (scores.thought_logp_M.square().sum() + scores.context_logp.sum()).backward()
        outcomes.append((scores, {n: p.grad.clone() for n, p in model.hf.named_parameters()}))
    (full, wanted), (spared, found) = outcomes
    for name in ("thought_logp_M", "think_logp_PGH", "no_think_logp_PH", "context_logp"):
        mine, true = getattr(spared, name).detach(), getattr(full, name).detach()
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    for name, true in wanted.items():
        assert (found[name] - true).norm() < 1e-11 * true.norm(), name


def test_the_first_position_is_thought_at_as_ever(model: LanguageModel) -> None:
    """TokenSampler goes by positions of the page; so one position is the isolated mode."""
    pages = [context(0), context(1, 19)]

    def ids(rollout: Rollout, k: int) -> list[list[int]]:
        return [t.sampled_ids.tolist() for t in rollout.thoughts[k]]

    alone, rollouts = isolated(model).sample(pages, place), sampled(model, pages)
    for page, first, second in zip(alone, rollouts[::3], rollouts[1::3], strict=True):
        assert ids(page, 0) == ids(first, 0)
        assert ids(page, 1) != ids(second, 0)
    single = InterleavedEngine(isolated(model), model, seed=5)
    one, other = (e.sample(pages, lambda *_: (9,)) for e in (isolated(model), single))
    assert [ids(r, 0) for r in one] == [ids(r, 0) for r in other]
    assert all(torch.equal(a.nll, b.nll) for a, b in zip(one, other, strict=True))
    assert [r.positions for r in other] == [(9,), (9,)]


def test_pages_are_put_together_again(model: LanguageModel) -> None:
    pages = [context(0), context(1, 19)]
    rollouts = sampled(model, pages)
    found = on_pages(rollouts)
    assert [r.positions for r in found] == [POSITIONS, POSITIONS]
    assert [r.context for r in found] == pages
    assert [g for r in found for g in r.thoughts] == [r.thoughts[0] for r in rollouts]
    assert torch.equal(found[1].nll, torch.cat([r.nll for r in rollouts[3:]]))
    alone = isolated(model).sample(pages, place)
    assert on_pages(alone) == alone


def test_splicing_from_left_to_right() -> None:
    page = Context(0, "d", torch.arange(10))
    once = splice(page, 3, torch.tensor([70, 71]))
    twice = splice(once, 4, torch.tensor([80]))
    assert twice.token_ids.tolist() == [0, 1, 2, 70, 71, 3, 80, 4, 5, 6, 7, 8, 9]
    assert [s.position for s in twice.seen] == [3, 4]
    assert (once.inserted, twice.inserted, len(page)) == (2, 3, 10)


def test_sizes_by_hand() -> None:
    """2 documents of 128 tokens, 4 positions, 4 thoughts of 8 tokens, horizon 4."""
    plain, found = (
        Tokens.of(Config.parse(minimal(), [f"placement.interleaved={on}"])) for on in (False, True)
    )
    again = 4 * 128 + (0 + 1 + 2 + 3) * (8 + 2)
    assert found.read == 2 * again
    assert plain.read == 2 * 128
    assert found.tree == plain.tree + 2 * (again - 128)
    assert found.sampled == plain.sampled
    assert found.head_rows == plain.head_rows + 2 * 3 * 4  # baselines of the later positions
    assert found.unshared == plain.unshared + 2 * 16 * 1.5 * 10
    config = Config.parse(minimal(), ["placement.interleaved=true"])
    assert config.longest_context == 128 + 3 * 10
    assert config.span_tokens == Config.parse(minimal()).span_tokens + 30


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["thought.answer_tokens=2"], "set thought.answer_tokens to 0, or placement.interleaved"),
        (
            [
                "thought.thoughts_per_position=0",
                "objective.pg_weight=0",
                "objective.continuation_weight=0",
            ],
            "there are no thoughts to see",
        ),
    ],
)
def test_what_cannot_be_combined(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(minimal(), ["placement.interleaved=true", *overrides])


def test_a_run_says_what_was_seen_and_trains_on_the_bare_page(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["evaluation"] = {"docs": 0}
    rows, metrics = {}, {}
    for on in (False, True):
        folder = tmp_path / str(on)
        options = [f"placement.interleaved={on}", f"run.dir={folder}", "model.dtype=float64"]
        Trainer(Config.parse(raw, [*options, "run.steps=1"])).fit()
        rows[on] = read_rollouts(folder, 1)
        [metrics[on]] = read_metrics(folder)
    where = [[(r["ordinal"], r["position"], r["thought_index"]) for r in rows[on]] for on in rows]
    assert where[0] == where[1]  # of the page, in the same order
    assert [r["continuation"] for r in rows[True]] == [r["continuation"] for r in rows[False]]
    assert not any("seen" in r for r in rows[False])
    groups = list({(r["ordinal"], r["position"]): r for r in rows[True]}.values())
    assert [("seen" in r) for r in groups] == [False, True] * 3
    for earlier, later in zip(groups[::2], groups[1::2], strict=True):
        [seen] = later["seen"]
        assert seen["position"] == earlier["position"]
        place_of = (earlier["ordinal"], earlier["position"])
        group = [r for r in rows[True] if (r["ordinal"], r["position"]) == place_of]
        assert seen["thought_ids"] in [r["thought_ids"] for r in group]
        assert seen["thought"].startswith("<think>")

    plain, found = metrics[False], metrics[True]
    assert found["loss/ntp"] == pytest.approx(plain["loss/ntp"], rel=1e-9)
    for key in ("data/digest", "placement/depth"):
        assert found[key] == plain[key]
    assert found["gain/mean"] != plain["gain/mean"]
    assert found["tokens/context"] > 2 * plain["tokens/context"] == 2 * 3 * 48
    assert found["tokens/spent"] == found["tokens/context"] + found["tokens/thought"]


def test_later_contexts_never_hold_a_continuation_too_early(model: LanguageModel) -> None:
    """What comes after a position changes neither its thoughts nor what later ones see of them."""
    page = context(0)
    changed = page.token_ids.clone()
    changed[12:] = (changed[12:] + 50) % 318
    one, other = (sampled(model, [replace(page, token_ids=t)]) for t in (page.token_ids, changed))
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a.thoughts[0], b.thoughts[0], strict=True):
            assert torch.equal(x.sampled_ids, y.sampled_ids)
    assert all(
        isinstance(s, EarlierThought) and torch.equal(s.token_ids, t.token_ids)
        for s, t in zip(one[2].context.seen, other[2].context.seen, strict=True)
    )
