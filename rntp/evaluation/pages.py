"""From rollouts to pages: every number of an evaluation that belongs to one position or thought.

Pages are the `pages` of eval/step_N.json; all tables are made of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rntp.config import Config
from rntp.evaluation.next_token import predictions
from rntp.evaluation.tool_use import calls_of
from rntp.model import LanguageModel
from rntp.model.forgetful import bare_logp, memory_logp
from rntp.model.microbatches import microbatches
from rntp.model.reading import LossReads
from rntp.model.token_bytes import ByteCounter
from rntp.model.tokenizer import decode, token_strings
from rntp.objective.forward import build_tree, forward
from rntp.objective.grading import grade
from rntp.rollout import Check
from rntp.types import Context, Rollout, Thought

Page = dict[str, Any]


def score_pages(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    config: Config,
    check: Check,
    scored: Callable[[int], None] = lambda count: None,
    *,
    longer: int = 0,
) -> list[Page]:
    """One page a rollout: log-probs of the continuation with and without each thought, and what
    the model says of its first token.

    scored: is told how many more rollouts are done. longer: with a reading window, tokens by which
    it is longer in one more cell; see `rntp.evaluation.memory`.
    """
    pages: list[Page] = []
    count_bytes, horizon = ByteCounter(model.tokenizer), config.reward.horizon
    window = config.reading.window
    reads = LossReads(window=window)
    for piece in microbatches(
        rollouts,
        tokens=config.parallel.tokens_per_microbatch,
        horizon=horizon,
        reads=reads,
        shares=model.shares,
    ):
        check()
        tree = build_tree(model, piece, horizon, reads)
        hidden = tree.tree.hidden(model)
        scores = forward(
            model,
            tree,
            temperature=config.thought.temperature,
            hidden=hidden,
        )
        think, empty = scores.think_logp_PGH.tolist(), scores.no_think_logp_PH.tolist()
        mixed = [] if scores.weight_PGH is None else scores.weight_PGH.tolist()
        alone = [] if scores.alone_logp_PGH is None else scores.alone_logp_PGH.tolist()
        first_empty, first_think = predictions(model, hidden, tree)
        whole, behind_more = scores.whole_logp_PH.tolist(), list[list[float]]()
        if window is not None and longer:
            behind_more = bare_logp(model, piece, window + longer, horizon).tolist()
        number = 0
        for rollout in piece:
            page = _page(model, rollout, horizon)
            n = rollout.context.num_scored(horizon)
            for k, (start, at) in enumerate(zip(rollout.positions, page["positions"], strict=True)):
                at["logp_empty"] = empty[number][:n]
                if window is not None:
                    at["logp_whole"] = whole[number]
                if behind_more:
                    at["logp_longer"] = behind_more[number]
                at["first_empty"] = first_empty[number]
                at["num_bytes"] = count_bytes.span(rollout.context.token_ids, start, start + n)
                at["entropy"] = float(rollout.entropy[k])
                for g, thought in enumerate(at["thoughts"]):
                    thought["logp_think"] = think[number][g][:n]
                    thought["first"] = first_think[number][g]
                    if mixed:
                        thought["weight"] = mixed[number][g][:n]
                        thought["logp_alone"] = alone[number][g][:n]
                number += 1
            pages.append(page)
        scored(len(piece))
    return pages


def score_memories(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    config: Config,
    check: Check,
    scored: Callable[[int], None] = lambda count: None,
) -> list[Page]:
    """With a reading window: one page a rollout as of `score_pages`, but with nothing in it of how
    its thoughts are read than their log-probs. For memories that no policy drew."""
    window, horizon = config.reading.window, config.reward.horizon
    assert window is not None
    most, size = config.parallel.tokens_per_microbatch, config.rollout.docs_per_batch
    pages: list[Page] = []
    for first in range(0, len(rollouts), size):
        check()
        some = rollouts[first : first + size]
        for rollout, think in zip(
            some, memory_logp(model, some, window, horizon, most), strict=True
        ):
            page = _page(model, rollout, horizon)
            for at, group in zip(page["positions"], think.tolist(), strict=True):
                for thought, logp in zip(at["thoughts"], group, strict=True):
                    thought["logp_think"] = logp
            pages.append(page)
        scored(len(some))
    return pages


def whole_pages(pages: Sequence[Page]) -> list[Page]:
    """One entry a page, where each link of a chain has one; others come back as they are."""
    found: list[Page] = []
    for page in pages:
        if found and all(found[-1][key] == page[key] for key in ("ordinal", "document_id")):
            positions = [*found[-1]["positions"], *page["positions"]]
            found[-1] = {**found[-1], "positions": positions}
        else:
            found.append(page)
    return found


def gains(at: dict[str, Any], config: Config) -> torch.Tensor:
    """Gain of each thought at a position, nats of each token of the continuation, float64 [G, H].

    Where a policy that may (`thought.source: policy_or_none`) has closed a thought at once it has
    not thought, and the page is read on as it is: 0.
    """
    empty = torch.tensor(at["logp_empty"], dtype=torch.float64)
    gain_GH = torch.tensor([t["logp_think"] for t in at["thoughts"]], dtype=torch.float64) - empty
    if config.thought.source == "policy_or_none":
        none_G = torch.tensor([t["closed"] and t["num_tokens"] == 0 for t in at["thoughts"]])
        gain_GH[none_G] = 0
    return gain_GH


def note_control(name: str, pages: list[Page], replaced: list[Page]) -> None:
    """Write the control's log-probs [H], mean over its thoughts, into the pages' positions."""
    where = {(page["ordinal"], at["position"]): at for page in pages for at in page["positions"]}
    for page in replaced:
        for at in page["positions"]:
            logp = np.mean([t["logp_think"] for t in at["thoughts"]], axis=0)
            entry = where[page["ordinal"], at["position"]]
            entry.setdefault("controls", {})[name] = logp.tolist()


def arrays(pages: Sequence[Page]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No-think loss, think loss (mean over thoughts) and document number of every token."""
    no_think, think, documents = [], [], []
    for number, page in enumerate(pages):
        for at in page["positions"]:
            no_think += [-x for x in at["logp_empty"]]
            think += list(-np.mean([t["logp_think"] for t in at["thoughts"]], axis=0))
            documents += [number] * len(at["logp_empty"])
    return np.array(no_think), np.array(think), np.array(documents)


def positions_of(pages: Sequence[Page]) -> tuple[list[dict[str, Any]], np.ndarray]:
    """All positions in order, and the document number of each, int64 [P]."""
    places = [(number, at) for number, page in enumerate(pages) for at in page["positions"]]
    return [at for _, at in places], np.array([number for number, _ in places])


def _attempt(thought: Thought, context: Context, model: LanguageModel) -> dict[str, Any]:
    """What a page keeps of an answer to a task; nothing where there is none."""
    if context.task is None or not len(thought.answer_ids):
        return {}
    answer = decode(model.tokenizer, thought.answer)
    return {
        "answer": answer,
        "score": grade(context.task, answer),
        "answer_tokens": len(thought.answer),
    }


def _page(model: LanguageModel, rollout: Rollout, horizon: int) -> Page:
    task = rollout.context.task
    labels, ids = rollout.context.labels, rollout.context.token_ids
    positions = []
    for position, own, group in zip(
        rollout.positions, rollout.page_positions, rollout.thoughts, strict=True
    ):
        thoughts = [
            {
                "text": decode(model.tokenizer, t.content),
                "closed": t.closed,
                "num_tokens": t.num_tokens,
                **calls_of(t, model, rollout.context, position, horizon),
                **_attempt(t, rollout.context, model),
            }
            for t in group
        ]
        at: dict[str, Any] = {"position": own, "thoughts": thoughts}
        if labels:
            known = labels.oracle.get(own)
            at["class"] = labels.names.get(labels.classes[own], "")
            at["oracle_gain"] = known.gain if known else None
        positions.append(at)
    return {
        "ordinal": rollout.context.ordinal,
        "document_id": rollout.context.document_id,
        "title": rollout.context.title,
        **({"task": {"answer": task.answer, "source": task.source}} if task else {}),
        "tokens": token_strings(model.tokenizer, ids[: rollout.context.num_text]),
        "positions": positions,
    }
