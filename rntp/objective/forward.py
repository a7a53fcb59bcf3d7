"""From a token tree to log-probs: one forward of the trunk, and of the head on the rows needed.

It gives the no-think baseline (document rows), the reward's log-probs (continuation rows) and the
policy's (thought rows). No side effects: nothing here updates, logs or saves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rntp.gate.features import features
from rntp.model import LanguageModel
from rntp.model.moe import Routing
from rntp.model.reading import BRANCHES, LossReads
from rntp.model.thought_tree import ThoughtTree, Trunk, live
from rntp.objective.continued import Found, continued
from rntp.objective.quantities import ForwardOutputs
from rntp.types import Rollout


def build_tree(
    model: LanguageModel, rollouts: Sequence[Rollout], horizon: int, reads: LossReads = BRANCHES
) -> ThoughtTree:
    """The token tree of a microbatch. Raises ConfigError where a reading window wants a start token
    and the tokenizer has none."""
    return ThoughtTree.build(
        rollouts,
        think_open_id=model.think_open_id,
        think_close_id=model.think_close_id,
        horizon=horizon,
        reads=reads,
        start_id=None if reads.window is None else model.start_id,
    )


def forward(
    model: LanguageModel,
    tree: ThoughtTree,
    *,
    temperature: float,
    with_collision: bool = False,
    hidden: Tensor | None = None,
    watch: bool = False,
) -> ForwardOutputs:
    """The one forward of the trunk, and of the head on the rows that are needed.

    hidden: what that forward gave, [N, H], where the caller has run it for more than the outputs.
    watch: for the routers of experts.
    """
    trunk = tree.tree.run(model, watch=watch) if hidden is None else Trunk(hidden)
    hidden = trunk.hidden
    device, shape = hidden.device, tree.think_rows_PGH.shape
    think_rows = tree.think_rows_PGH.flatten()
    think_targets = tree.continuation_PH[:, None].expand(shape).flatten()
    # Rows of pages, each once: a row may belong to many baselines, and to the page's own loss.
    document_rows, where = torch.cat([tree.context_rows, tree.whole_rows_PH.flatten()]).unique(
        return_inverse=True
    )
    document_targets = torch.empty_like(document_rows)
    document_targets[where] = torch.cat([tree.context_targets, tree.continuation_PH.flatten()])
    of_context, of_whole = where.to(device).split(
        [len(tree.context_rows), tree.whole_rows_PH.numel()]
    )

    asked = {
        "thought": _thought_query(tree, temperature),
        "think": _Query(think_rows, think_targets),
        "document": _Query(document_rows, document_targets),
    }
    reads, window = tree.reads, tree.reads.window
    mixes = model.mixing is not None and reads.continuation and window is None
    learning = {
        "thought": True,
        "think": reads.continuation,
        "document": reads.context or mixes,  # what thoughts are mixed with
    }
    if window is not None:
        asked["bare"] = _Query(tree.no_think_rows_PH.flatten(), tree.continuation_PH.flatten())
        learning["bare"] = reads.continuation
    found = _logprobs(model, hidden, {k: v for k, v in asked.items() if learning[k]})
    with torch.no_grad():
        found |= _logprobs(model, hidden, {k: v for k, v in asked.items() if not learning[k]})
    thought, document = found["thought"], found["document"]
    whole = Found(*(x.index_select(0, of_whole) for x in document))
    empty = found.get("bare", whole)
    sure = partial(_certain, tree.scored_PH)
    shape_PH = tree.whole_rows_PH.shape
    bare_PH = sure(empty.logp.view(shape_PH), 0.0)
    behind = continued(
        model, tree, hidden, empty, found["think"], with_collision=with_collision
    ).certain(sure)
    return ForwardOutputs(
        thought_logp_M=thought.logp,
        thought_entropy_M=thought.entropy,
        think_logp_PGH=behind.logp,
        no_think_logp_PH=bare_PH.detach(),
        whole_logp_PH=sure(whole.logp.detach().view(shape_PH), 0.0),
        match_PGH=behind.match,
        context_logp=document.logp.index_select(0, of_context) if reads.context else None,
        bare_logp_PH=bare_PH if learning.get("bare") else None,
        collision_PGH=behind.collision,
        weight_PGH=behind.weight,
        alone_logp_PGH=behind.alone,
        routing=Routing.of(trunk.routed),
        features_PF=_before_positions(tree, hidden, whole.entropy),
    )


def _before_positions(tree: ThoughtTree, hidden: Tensor, entropy_PH: Tensor) -> Tensor:
    """What is known before each position without thinking; see `rntp.gate.features`. entropy_PH:
    nats, flat, of the continuation in sight of the whole context."""
    rows = tree.whole_rows_PH
    if not rows.numel():
        return torch.zeros(0, 0)
    before = hidden.detach().index_select(0, rows[:, 0].to(hidden.device))
    return features(before, entropy_PH.view(rows.shape)[:, 0])


def forward_with_gradients(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    known: ForwardOutputs,
    live_P: Tensor,
    horizon: int,
    reads: LossReads,
    *,
    temperature: float,
    watch: bool = False,
) -> ForwardOutputs:
    """The outputs of an earlier forward of these rollouts, now with gradients for sampled tokens
    and pages, from a tree of these alone; `reads.continuation` must be false.

    live_P: bool, the positions that the loss reads; thoughts elsewhere keep what is known of them.
    """
    live_P = live_P.cpu()
    tree = build_tree(model, live(rollouts, live_P, reads), horizon, reads)
    trunk = tree.tree.learning_part().run(model, watch=watch)
    hidden = trunk.hidden
    asked = {"thought": _thought_query(tree, temperature)}
    if reads.context:
        asked["context"] = _Query(tree.context_rows, tree.context_targets)
    found = _logprobs(model, hidden, asked)
    groups = [group for r in rollouts for group in r.thoughts]
    drawn_P = torch.tensor([sum(t.num_drawn for t in g) for g in groups], dtype=torch.int64)
    live_M = live_P.repeat_interleave(drawn_P).to(hidden.device)
    thought = found["thought"]
    return replace(
        known,
        thought_logp_M=known.thought_logp_M.detach().masked_scatter(live_M, thought.logp),
        thought_entropy_M=known.thought_entropy_M.detach().masked_scatter(live_M, thought.entropy),
        context_logp=found["context"].logp if reads.context else None,
        routing=Routing.of(trunk.routed),
    )


def _certain(scored_PH: Tensor | None, values: Tensor, value: float) -> Tensor:
    """Put what a certain prediction has, without a gradient, where nothing is predicted: [P, H] or
    [P, G, H]."""
    if scored_PH is None:
        return values
    scored = scored_PH.to(values.device)
    scored = scored if values.ndim == 2 else scored[:, None]
    return torch.where(scored, values, torch.tensor(value, dtype=values.dtype).to(values.device))


class _Query(NamedTuple):
    """Rows of the tree, int64 [N], the tokens that they are to predict, and at what temperature."""

    rows: Tensor
    targets: Tensor
    # That of sampling belongs to the policy; how well text is predicted is measured at 1.
    temperature: float = 1.0


def _thought_query(tree: ThoughtTree, temperature: float) -> _Query:
    return _Query(tree.thought_rows, tree.thought_targets, temperature)


def _logprobs(
    model: LanguageModel, hidden: Tensor, asked: Mapping[str, _Query]
) -> dict[str, Found]:
    """What the head says of some rows of the hidden states [N, H], in one call."""
    if not asked:
        return {}
    device, parts = hidden.device, list(asked.values())
    sizes = [len(part.rows) for part in parts]
    temperatures = torch.tensor([part.temperature for part in parts])
    # index_select, not indexing: its backward adds in a fixed order on the CPU.
    found = model.logprob(
        hidden.index_select(0, torch.cat([part.rows for part in parts]).to(device)),
        torch.cat([part.targets for part in parts]).to(device),
        temperatures.repeat_interleave(torch.tensor(sizes)).to(device),
    )
    pieces = zip(*(x.split(sizes) for x in found), strict=True)
    return {name: Found(*piece) for name, piece in zip(asked, pieces, strict=True)}
