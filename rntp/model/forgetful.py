"""Continuations read behind a window of the page and nothing else: sequences of their own, without
gradients, where no policy has to be computed beside them."""

from collections.abc import Iterator, Sequence

import torch
from rntp_kernels.tree_attention.layout import ROOT
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.reading import read_behind
from rntp.model.thought_tree import TokenTree, memory_branch
from rntp.types import Rollout

MOST_TOKENS = 1 << 14  # of one forward, where nobody says less


@torch.no_grad()
def tail_logp(
    model: LanguageModel,
    sequences: Sequence[Tensor],
    horizon: int,
    most_tokens: int = MOST_TOKENS,
) -> Tensor:
    """Compute log p of the last `horizon` tokens of each sequence (int64, longer than that), each
    read alone: nats, [N, horizon]. most_tokens: of one forward; a longer sequence is one."""
    found = [torch.zeros(0, horizon, device=model.device)]
    for some in _batches(sequences, most_tokens):
        tree = TokenTree.build([(ids[:-1], ROOT, 0) for ids in some])
        ends = torch.tensor(tree.layout.offsets[1:])
        rows = (ends[:, None] - horizon + torch.arange(horizon)).flatten()
        targets = torch.cat([ids[-horizon:] for ids in some])
        hidden = tree.hidden(model).index_select(0, rows.to(model.device))
        logp, _, _ = model.logprob(hidden, targets.to(model.device))
        found.append(logp.view(len(some), horizon))
    return torch.cat(found)


def bare_logp(
    model: LanguageModel, rollouts: Sequence[Rollout], window: int, horizon: int
) -> Tensor:
    """Compute log p(continuation token | start token, the last `window` tokens), nats, [P, H]."""
    sequences = [
        torch.cat([behind.new_tensor([model.start_id]), behind])
        for rollout in rollouts
        for position in rollout.positions
        for behind in [_behind(rollout, position, window, horizon)]
    ]
    return tail_logp(model, sequences, horizon)


def memory_logp(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    window: int,
    horizon: int,
    most_tokens: int = MOST_TOKENS,
) -> list[Tensor]:
    """Compute log p(continuation token | start token, memory, the last `window` tokens), nats: of
    each rollout [P, G, H]. The same as of a tree in which policy and page stand, for less."""
    markers = model.think_open_id, model.think_close_id
    sequences = []
    for rollout in rollouts:
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            behind = _behind(rollout, position, window, horizon)
            for thought in group:
                branch = memory_branch(thought, *markers)
                sequences.append(torch.cat([behind.new_tensor([model.start_id]), branch, behind]))
    logp = tail_logp(model, sequences, horizon, most_tokens)
    sizes = [sum(map(len, r.thoughts)) for r in rollouts]
    return [
        found.view(len(r.positions), len(r.thoughts[0]) if r.thoughts else 0, horizon)
        for r, found in zip(rollouts, logp.split(sizes), strict=True)
    ]


def _behind(rollout: Rollout, position: int, window: int, horizon: int) -> Tensor:
    """What stands behind start token and memory: int64 [w + H], the window and the continuation."""
    last = rollout.context.token_ids[position + horizon - 1 : position + horizon]
    return torch.cat([read_behind(rollout, position, window, horizon), last])


def _batches(sequences: Sequence[Tensor], most_tokens: int) -> Iterator[list[Tensor]]:
    """Cut sequences into parts of so many tokens at most."""
    batch: list[Tensor] = []
    size = 0
    for ids in sequences:
        if batch and size + len(ids) > most_tokens:
            yield batch
            batch, size = [], 0
        batch.append(ids)
        size += len(ids)
    if batch:
        yield batch
