"""Behind a reading window results are read, and the calls that brought them are not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import compute_norms_in_float64
from torch import Tensor

from rntp.evaluation.controls import CONTROLS
from rntp.model import LanguageModel, load_model
from rntp.model.forgetful import memory_logp
from rntp.model.reading import LossReads
from rntp.model.tree_sizes import plain_tokens, tree_tokens, unshared_tokens
from rntp.objective.forward import build_tree, forward
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.sampling import draw
from rntp.rollout.tool_calls import ToolCalls
from rntp.tools.cache import Cache
from rntp.tools.desk import Desk
from rntp.tools.registry import PlainTool
from rntp.types import Context, Rollout, Thought, without_calls

MARKERS = ("<tool>", "</tool>", "<result>", "</result>")
HORIZON, WINDOW, BUDGET = 3, 4, 24


@contextmanager
def rollouts(folder: Path) -> Iterator[tuple[LanguageModel, list[Rollout]]]:
    """Thoughts that call a tool once or twice, or too often."""
    model = load_model(str(folder), dtype=torch.float64, tool_markers=MARKERS)
    compute_norms_in_float64(model.hf)
    opening, closing = model.tool_ids[:2]

    def often(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ids, _ = draw(logits, uniforms, temperature)
        ids = torch.where(uniforms < 0.25, opening, ids)
        ids = torch.where((uniforms >= 0.25) & (uniforms < 0.5), closing, ids)
        logp = torch.log_softmax(logits / temperature, dim=-1)
        return ids, logp.gather(1, ids[:, None])[:, 0]

    desk = Desk({"x": PlainTool(lambda text, page: text, "1", True, None)}, Cache(None), workers=1)
    engine = InProcessEngine(
        model, thoughts=3, budget=BUDGET, temperature=1.0, seed=5, slots=32, draw=often
    )
    engine.tools = ToolCalls(model, desk, calls=2, result_tokens=6, horizon=HORIZON, window=WINDOW)
    generator = torch.Generator().manual_seed(7)
    pages = [
        Context(n, f"doc{n}", torch.randint(1, 318, (24,), generator=generator)) for n in range(3)
    ]
    yield model, engine.sample(pages, lambda context, known: (6, 12, 18))
    desk.close()


def cut_by_hand(model: LanguageModel, thought: Thought) -> list[int]:
    """The ids of a thought without the calls that have a result, found by their markers."""
    opening, closing, result = model.tool_ids[:3]
    ids, kept = thought.sampled_ids.tolist(), list[int]()
    for n, token in enumerate(ids):
        kept.append(token)
        if token == closing and n + 1 < len(ids) and ids[n + 1] == result and thought.given[n + 1]:
            begin = len(kept) - 1 - kept[::-1].index(opening)
            del kept[begin:]
    return kept


def test_calls_are_cut_and_results_stay(model_folders: dict[str, Path]) -> None:
    with rollouts(model_folders["llama"]) as (model, sampled):
        thoughts = [t for r in sampled for group in r.thoughts for t in group]
        assert {len([c for c in t.calls if c.asked]) for t in thoughts} >= {0, 1, 2}
        assert any(c.failure == "too_many_calls" and not c.asked for t in thoughts for c in t.calls)
        for thought in thoughts:
            assert thought.read_ids.tolist() == cut_by_hand(model, thought)
            for control in ("other_results", "no_results"):
                one = replace(sampled[0], positions=(6,), thoughts=((thought,),))
                two = replace(one, context=replace(one.context, document_id="other"))
                changed = CONTROLS[control]([one, two], model.tokenizer)
                for rollout in changed:
                    for group in rollout.thoughts:
                        for other in group:
                            assert other.read_ids.tolist() == cut_by_hand(model, other)
    plain = Thought(torch.arange(5), torch.zeros(5), closed=True)
    assert plain.read_ids is plain.sampled_ids
    with pytest.raises(ValueError, match="zip"):
        without_calls(torch.arange(5), torch.zeros(5, dtype=torch.bool), [2])


def test_readings_are_those_of_results_alone(model_folders: dict[str, Path]) -> None:
    """In float64, of the tree and of the cheaper way, against forwards of their own; and the sizes
    that microbatches are cut by are those of the tree."""
    reads = LossReads(window=WINDOW)
    with rollouts(model_folders["llama"]) as (model, sampled):
        tree = build_tree(model, sampled, HORIZON, reads)
        found = forward(model, tree, temperature=1.0).think_logp_PGH
        again = torch.cat(memory_logp(model, sampled, WINDOW, HORIZON))
        assert sum(tree_tokens(r, HORIZON, reads) for r in sampled) == len(tree.tree.token_ids)
        model.hf.set_attn_implementation("sdpa")
        row = 0
        for rollout in sampled:
            for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
                page = rollout.context.token_ids[position - WINDOW : position + HORIZON]
                for g, thought in enumerate(group):
                    ids = [model.start_id, model.think_open_id, *cut_by_hand(model, thought)]
                    ids += [] if thought.closed else [model.think_close_id]
                    ids += page.tolist()
                    with torch.no_grad():
                        logits = model.hf(torch.tensor([ids])).logits[0, -HORIZON - 1 : -1]
                    wanted = logits.log_softmax(-1).gather(1, page[-HORIZON:, None])[:, 0]
                    torch.testing.assert_close(found[row, g], wanted, atol=1e-10, rtol=0)
                    torch.testing.assert_close(again[row, g], wanted, atol=1e-10, rtol=0)
                row += 1
        longer = [replace(r, thoughts=_without_records(r)) for r in sampled]
        for size in (
            lambda r: tree_tokens(r, HORIZON, reads),
            lambda r: plain_tokens(r, HORIZON, reads)[0],
            lambda r: unshared_tokens(r, HORIZON, WINDOW),
        ):
            asked = sum(c.asked for r in sampled for g in r.thoughts for t in g for c in t.calls)
            assert sum(map(size, longer)) - sum(map(size, sampled)) == asked > 0


def _without_records(rollout: Rollout) -> tuple[tuple[Thought, ...], ...]:
    return tuple(tuple(replace(t, calls=()) for t in group) for group in rollout.thoughts)
