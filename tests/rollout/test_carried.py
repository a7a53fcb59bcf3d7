"""Memories carried through a page piece by piece: what each link sees, and what is computed."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64, same_shards, tiny_run
from test_config import minimal

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.controls import shuffled
from rntp.evaluation.pieces import lost_and_window
from rntp.model import LanguageModel, load_model
from rntp.model.forgetful import bare_logp
from rntp.model.reading import LossReads, read_behind
from rntp.model.thought_tree import thought_branch
from rntp.model.tree_sizes import tree_tokens
from rntp.objective.forward import build_tree, forward
from rntp.objective.quantities import Counts
from rntp.rollout.carried import CarriedEngine
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.interleaved import on_pages
from rntp.rollout.tool_calls import bare_ids
from rntp.run.log import read_metrics, read_rollouts
from rntp.trainer import Trainer
from rntp.training.estimate import Tokens
from rntp.types import Context, NextTokenStats, Rollout

BUDGET, PIECE, HORIZON, LINKS = 5, 6, 7, 3
START = 0  # the tiny tokenizers' end token


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    loaded = load_model(str(model_folders["llama"]), dtype=torch.float64)
    compute_norms_in_float64(loaded.hf)
    return loaded


def page_of(ordinal: int, length: int = 28) -> Context:
    generator = torch.Generator().manual_seed(100 + ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 318, (length,), generator=generator))


def nowhere(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    raise AssertionError("pieces end where they end")


def sampled(
    model: LanguageModel, pages: list[Context], keeps: bool = True, thoughts: int = 2
) -> list[Rollout]:
    engine = InProcessEngine(
        model, thoughts=thoughts, budget=BUDGET, temperature=1.0, seed=5, slots=48
    )
    chain = CarriedEngine(
        engine, model, piece=PIECE, links=LINKS, horizon=HORIZON, seed=5, keeps=keeps
    )
    return chain.sample(pages, nowhere)


def branch(model: LanguageModel, content: torch.Tensor) -> list[int]:
    return [model.think_open_id, *content.tolist(), model.think_close_id]


def test_a_link_sees_a_memory_of_the_group_before_and_its_piece(model: LanguageModel) -> None:
    pages = [page_of(n, 28 - n) for n in range(8)]
    rollouts = sampled(model, pages)
    assert [r.context.ordinal for r in rollouts] == [n for n in range(8) for _ in range(LINKS)]
    picks = []
    for n, page in enumerate(pages):
        x, chain = page.token_ids, rollouts[LINKS * n : LINKS * (n + 1)]
        assert [r.page_positions for r in chain] == [(PIECE * k,) for k in (1, 2, 3)]
        assert torch.equal(chain[0].context.token_ids, x)
        for k, (before, link) in enumerate(pairwise(chain), 1):
            [seen] = link.context.seen
            said = [branch(model, t.content) for t in before.thoughts[0]]
            memory = seen.token_ids.tolist()
            assert memory[0] == START == model.start_id
            picks.append(said.index(memory[1:]))
            piece = x[PIECE * k : PIECE * (k + 1) + HORIZON].tolist()
            assert link.context.token_ids.tolist() == [*memory, *piece]
            assert torch.equal(link.context.left, x[: PIECE * k])
            assert torch.equal(bare_ids(link.context), x[: PIECE * (k + 1) + HORIZON])
            at = link.positions[0]
            assert torch.equal(link.context.token_ids[at:], x[PIECE * (k + 1) :][:HORIZON])
    assert set(picks) == {0, 1, 2}  # drawn: both that were written, and the one that was kept


def test_the_memory_before_joins_every_group_as_it_was(model: LanguageModel) -> None:
    rollouts = sampled(model, [page_of(n) for n in range(4)])
    for n, rollout in enumerate(rollouts):
        *written, kept = rollout.thoughts[0]
        assert len(written) == 2
        assert not any(t.kept for t in written)
        assert kept.kept
        assert kept.num_drawn == 0
        before = rollout.context.seen[0].token_ids[2:-1] if n % LINKS else torch.zeros(0)
        assert kept.content.tolist() == before.tolist()
    assert not any(t.kept for r in sampled(model, [page_of(0)], False) for t in r.thoughts[0])
    drawn = sum(len(t.sampled_ids) for r in rollouts for t in r.thoughts[0] if not t.kept)
    assert Counts.of(rollouts, HORIZON).thought == drawn > 0


@pytest.mark.parametrize("window", [0, 4, PIECE])
def test_values_and_gradients_are_those_of_plain_sequences(
    model: LanguageModel, window: int
) -> None:
    """start memory piece → memory', and start memory' window continuation, from ids alone."""
    rollouts = sampled(model, [page_of(0), page_of(1)])
    reads = LossReads(window=window)
    weight = torch.linspace(-1, 2, len(rollouts) * 3 * HORIZON, dtype=torch.float64)

    def loss(thought: torch.Tensor, think: torch.Tensor, bare: torch.Tensor) -> torch.Tensor:
        of_thoughts = torch.linspace(1, 3, len(thought), dtype=torch.float64)
        return (weight * think).sum() + (of_thoughts * thought).sum() - 0.7 * bare.sum()

    outcomes = []
    found = forward(model, build_tree(model, rollouts, HORIZON, reads), temperature=1.0)
    parts = [found.thought_logp_M, found.think_logp_PGH.flatten(), found.bare_logp_PH.flatten()]
    model.hf.zero_grad()
    loss(*parts).backward()
    outcomes.append({n: p.grad.clone() for n, p in model.hf.named_parameters()})

    model.hf.set_attn_implementation("sdpa")
    model.hf.zero_grad()
    start = torch.tensor([START])

    def plainly(*pieces: torch.Tensor) -> torch.Tensor:
        whole = torch.cat(pieces)
        logp = model.hf(whole[None]).logits[0, :-1].log_softmax(-1)
        return logp.gather(1, whole[1:, None])[:, 0]

    thought, think, bare, whole = [], [], [], []
    markers = model.think_open_id, model.think_close_id
    for n, rollout in enumerate(rollouts):
        page = page_of(n // LINKS).token_ids
        end = PIECE * (n % LINKS + 1)
        behind, truth = page[end - window : end], page[end : end + HORIZON]
        before = (
            [start, torch.tensor(branch(model, rollout.thoughts[0][-1].content))]
            if n % LINKS
            else []
        )
        link = [*before, page[end - PIECE : end]]
        bare.append(plainly(start, behind, truth)[-HORIZON:])
        whole.append(plainly(*link, truth)[-HORIZON:])
        for each in rollout.thoughts[0]:
            memory = thought_branch(each.sampled_ids, each.closed, *markers)
            think.append(plainly(start, memory, behind, truth)[-HORIZON:])
            if not each.kept:
                written = plainly(*link, memory)[sum(map(len, link)) - 1 :]
                thought.append(written[1:][: len(each.sampled_ids)])
    wanted = [torch.cat(part) for part in (thought, think, bare)]
    loss(*wanted).backward()
    outcomes.append({n: p.grad.clone() for n, p in model.hf.named_parameters()})
    model.hf.set_attn_implementation("rntp")
    for mine, true in zip(
        [*parts, found.whole_logp_PH.flatten()], [*wanted, torch.cat(whole)], strict=True
    ):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    ours, theirs = outcomes
    for name, true in theirs.items():
        assert (ours[name] - true).abs().max() <= 1e-12 * true.abs().max(), name
        assert true.abs().max() > 0, name
    sampler = torch.cat([t.drawn_logprobs for r in rollouts for t in r.thoughts[0]])
    torch.testing.assert_close(sampler, wanted[0].float(), rtol=0, atol=1e-5)


def test_nothing_reaches_a_link_but_a_memory_and_its_piece(model: LanguageModel) -> None:
    """Another text before the piece, under the same memory, changes no bit; another memory does."""
    chain = sampled(model, [page_of(0)])
    link = chain[-1]
    other = replace(link, context=replace(link.context, left=(link.context.left + 7) % 318))
    ids = link.context.token_ids.clone()
    ids[2] = (ids[2] + 5) % 318 + 1
    changed = replace(link, context=replace(link.context, token_ids=ids))
    one, same, moved = (
        forward(model, build_tree(model, [r], HORIZON, LossReads(window=3)), temperature=1.0)
        for r in (link, other, changed)
    )
    for name in ("thought_logp_M", "think_logp_PGH", "no_think_logp_PH", "whole_logp_PH"):
        assert torch.equal(getattr(one, name), getattr(same, name)), name
    assert (one.thought_logp_M - moved.thought_logp_M).abs().max() > 1e-6
    assert torch.equal(one.think_logp_PGH, moved.think_logp_PGH)
    # The whole chain, too: what stands behind a continuation changes no memory before it.
    page = page_of(0)
    tail = page.token_ids.clone()
    tail[PIECE * 2 :] = (tail[PIECE * 2 :] + 50) % 318
    again = sampled(model, [replace(page, token_ids=tail)])
    for a, b in zip(chain[:2], again[:2], strict=True):
        for x, y in zip(a.thoughts[0], b.thoughts[0], strict=True):
            assert torch.equal(x.sampled_ids, y.sampled_ids)


def test_no_chain_depends_on_the_pages_beside_it(model: LanguageModel) -> None:
    pages = [page_of(n) for n in range(3)]
    together = sampled(model, pages)
    alone = [r for page in pages for r in sampled(model, [page])]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.context.token_ids, b.context.token_ids)
        for x, y in zip(a.thoughts[0], b.thoughts[0], strict=True):
            assert torch.equal(x.sampled_ids, y.sampled_ids)
    # Links of a page draw apart, although they stand at like places of their contexts.
    draws = [tuple(t.sampled_ids.tolist() for t in r.thoughts[0][:2]) for r in together]
    assert len({str(d) for d in draws}) == len(draws)


def test_a_longer_window_reads_the_page_and_no_memory(model: LanguageModel) -> None:
    """The bar of an evaluation: the same room without thinking."""
    rollouts = sampled(model, [page_of(0)])
    page = page_of(0).token_ids
    for k, rollout in enumerate(rollouts, 1):
        end = PIECE * k
        for window in (3, PIECE, PIECE + 4):
            first = max(end - window, 0)
            behind = read_behind(rollout, rollout.positions[0], window, HORIZON)
            assert torch.equal(behind, page[first : end + HORIZON - 1])
            lost, kept = lost_and_window(rollout, rollout.positions[0], window)
            assert torch.equal(lost, page[:first])
            assert torch.equal(kept, page[first:end])
        for reads in (LossReads(window=3), LossReads(context=True, window=PIECE)):
            tree = build_tree(model, [rollout], HORIZON, reads).tree
            assert tree_tokens(rollout, HORIZON, reads) == tree.layout.num_tokens
    longer, bare = (bare_logp(model, rollouts, w, HORIZON) for w in (PIECE + 4, PIECE))
    torch.testing.assert_close(longer[0], bare[0])  # there the page begins
    assert (longer - bare)[1:].abs().min() > 1e-6


def test_another_page_gives_the_memory_of_the_same_piece(model: LanguageModel) -> None:
    rollouts = sampled(model, [page_of(n) for n in range(2)], keeps=False)
    assert on_pages(rollouts)[1].positions == (PIECE, 2 * PIECE, 3 * PIECE)
    replaced = shuffled(rollouts, None)
    for n, rollout in enumerate(replaced):
        assert rollout.thoughts == rollouts[(n + LINKS) % (2 * LINKS)].thoughts
    with pytest.raises(ConfigError, match="one document"):
        shuffled(rollouts[:LINKS], None)


OPTIONS = ["reading.window=4", "reading.piece=8", "model.dtype=float64"]


def test_a_run_in_chains(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    sets = [*OPTIONS, "placement.positions_per_doc=3", "thought.thoughts_per_position=4"]
    sets += ["evaluation.controls=[shuffled, first_tokens]", "run.steps=2"]
    config = Config.parse(raw, sets)
    assert config.sampled_thoughts == 3
    assert config.min_document_tokens == 3 * 8 + 4
    Trainer(config).fit()
    folder = config.run.dir
    [row, _] = read_metrics(folder)
    rows = list(read_rollouts(folder, 1))
    assert [r["position"] for r in rows[::4]] == [8, 16, 24] * 3
    assert [r["lost_tokens"] for r in rows[::4]] == [4, 12, 20] * 3
    kept = rows[3::4]
    assert all(r["num_tokens"] == 0 and r["sampler_logprob"] == 0 for r in kept)
    written = [r for n, r in enumerate(rows) if n % 4 < 3]
    mean = sum(r["num_tokens"] for r in written) / len(written)
    assert row["thought/tokens_mean"] == pytest.approx(mean)
    assert row["tokens/thought"] == sum(r["num_tokens"] + r["closed"] for r in written)
    # Groups are of four, and the advantages of the three others are about the mean with the kept.
    for n in range(0, len(rows), 4):
        group = [r["reward"] for r in rows[n : n + 4]]
        for k in range(4):
            others = (sum(group) - group[k]) / 3
            assert rows[n + k]["advantage"] == pytest.approx(group[k] - others, abs=1e-9)
    # Full lengths are what --dry-run counts.
    tokens = Tokens.of(config)
    assert row["tokens/context"] <= tokens.read == 3 * (48 + 2 * (1 + 5 + 2 + 8 + 4))
    result = json.loads((folder / "eval/step_00000002.json").read_text())
    assert [[at["position"] for at in page["positions"]] for page in result["pages"]] == [
        [8, 16, 24]
    ] * 3
    assert result["num_docs"] == 3
    assert set(result["memory"]["controls"]) == {"shuffled", "first_tokens"}
    assert result["memory"]["num_positions"] == 9


KILLED = """
import os, signal, sys
from rntp import Config, Trainer
from rntp.rollout.carried import CarriedEngine

links, carried = [0], CarriedEngine._carried

def dies(self, rollout):
    links[0] += 1
    if links[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return carried(self, rollout)

CarriedEngine._carried = dies
Trainer(Config.load(sys.argv[1])).fit()
"""


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_chain_changes_nothing(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    sets = [*OPTIONS, "placement.positions_per_doc=3", "run.steps=3", "evaluation.docs=0"]
    straight, killed = (
        Config.parse(raw, [*sets, f"run.dir={tmp_path / name}"]) for name in ("one", "other")
    )
    path = tmp_path / "killed.yaml"
    path.write_text(killed.to_yaml())
    # A step has three pages of three links: in the third step, between its second and its third.
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), str(2 * 9 + 5)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(read_metrics(killed.run.dir)) == 2
    for config in (killed, straight):
        Trainer(config).fit()
    rows = [read_metrics(config.run.dir) for config in (straight, killed)]
    assert len(rows[0]) == len(rows[1]) == 3
    for one, other in zip(*rows, strict=True):
        for key, value in one.items():
            assert key.startswith(("time/", "memory/")) or other[key] == value, key
    same_shards(*(c.run.dir / "checkpoints" / "step_00000003" for c in (straight, killed)))
    for step in (1, 2, 3):
        thoughts = [list(read_rollouts(c.run.dir, step)) for c in (straight, killed)]
        assert thoughts[0] == thoughts[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reading.window=null"], "set reading.window to 0 or more, up to reading.piece"),
        (["reading.window=9"], "set reading.window to 0 or more, up to reading.piece"),
        (["thought.thoughts_per_position=1", "objective.pg_weight=0"], "to 2 or more"),
        (["placement.policy=entropy"], "nothing to place"),
        (["placement.interleaved=true"], "nothing to place"),
        (["evaluation.placement=even"], "nothing to place"),
        (["placement.positions_per_doc=16"], "has 15 positions"),
        (["thought.tools={use: {python: null}}"], "only recall goes with pages"),
    ],
)
def test_what_cannot_be_combined(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(minimal(), ["reading.window=4", "reading.piece=8", *overrides])


def test_sizes_by_hand() -> None:
    """2 documents of 128 tokens, 4 links of 8 tokens, 4 thoughts of 8 tokens, horizon 4."""
    sets = ["reading.window=4", "reading.piece=8"]
    found = Tokens.of(Config.parse(minimal(), sets))
    link = 1 + 8 + 2 + 8 + 4
    assert found.read == 2 * (128 + 3 * link)
    assert found.sampled == 2 * 4 * 3 * 8
    reading = 1 + 8 + 2 + 4 + 3
    assert found.tree == 2 * (128 + 3 * link + 16 * (8 + reading) + 4 * (1 + 4 + 3))
    document = 128 + 3 * 4
    assert found.head_rows == 2 * (12 * 8 + 16 * 4 + document + 4 * 4)
    assert found.learning_rows == found.head_rows
