"""Token trees: a document and everything that branches off it, as one packed stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from rntp_kernels import TreeAttention, TreeLayout
from torch import Tensor

from rntp.model import LanguageModel
from rntp.types import Rollout


@dataclass(frozen=True)
class TokenTree:
    """Tokens of a forest of segments. token_ids: int64 [N], in the order of `layout`.

    >>> tree = TokenTree.build([(document, -1, 0), (thought, 0, p), (continuation, 1, n)])
    """

    token_ids: Tensor
    layout: TreeLayout

    @classmethod
    def build(cls, segments: Sequence[tuple[Tensor, int, int]]) -> Self:
        """From (token ids, parent segment or -1, how many of the parent's tokens it sees).

        Raises ValueError if the segments are no forest; see TreeLayout.
        """
        layout = TreeLayout(
            lengths=tuple(len(ids) for ids, _, _ in segments),
            parents=tuple(parent for _, parent, _ in segments),
            attach=tuple(attach for _, _, attach in segments),
        )
        return cls(torch.cat([ids for ids, _, _ in segments]), layout)

    def rows(self, segment: int) -> Tensor:
        """int64 [n]: rows of a segment's tokens."""
        return torch.arange(self.layout.offsets[segment], self.layout.offsets[segment + 1])

    def predicting_rows(self, segment: int) -> Tensor:
        """int64 [n]: for each token of a segment, the row whose output predicts it (-1: none)."""
        rows = self.rows(segment) - 1
        rows[0] = self.layout.predecessor(segment)
        return rows

    def hidden(self, model: LanguageModel) -> Tensor:
        """The one trunk forward: last hidden states, [N, H], with gradients if they are on."""
        device = model.device
        return model.hidden(
            self.token_ids.to(device),
            self.layout.position_ids().to(device),
            TreeAttention(self.layout, device),
        )


@dataclass(frozen=True)
class ThoughtTree:
    """The tree of a microbatch of rollouts, and which row predicts what.

    P positions in all, G thoughts each, H continuation tokens, M sampled tokens: of each thought
    and then of its answer. thought_rows, thought_targets: int64 [M], for the tokens that were
    sampled (forced markers are not). thought_index: int64 [M], the thought p·G + g of each.
    think_rows_PGH, empty_rows_PH: rows that predict the continuation with and without the thought.
    continuation_PH: its ids.
    context_rows: int64, rows of plain next-token prediction on the contexts, those left out that
    hold earlier thoughts: their pages are there, or in another microbatch, without them.
    """

    tree: TokenTree
    thought_rows: Tensor
    thought_targets: Tensor
    thought_index: Tensor
    think_rows_PGH: Tensor
    empty_rows_PH: Tensor
    continuation_PH: Tensor
    context_rows: Tensor

    @classmethod
    def build(
        cls, rollouts: Sequence[Rollout], *, think_open_id: int, think_close_id: int, horizon: int
    ) -> Self:
        """Lay out documents and branches: context ─ thought ─ continuation and answer.

        Both hang at the end of the thought, side by side: neither sees the other.
        """
        segments: list[tuple[Tensor, int, int]] = []
        roots: list[int] = []  # bare pages: one with thoughts in it is some bare page again
        drawn: list[list[tuple[int, Tensor]]] = []  # of each thought: segments, sampled ids
        continuations: list[int] = []
        empty: list[tuple[int, int]] = []  # root segment, position
        for rollout in rollouts:
            root = len(segments)
            if not rollout.context.seen:
                roots.append(root)
            ids = rollout.context.token_ids
            segments.append((ids, -1, 0))
            for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
                empty.append((root, position))
                for thought in group:
                    branch = thought_branch(
                        thought.sampled_ids, thought.closed, think_open_id, think_close_id
                    )
                    top = len(segments)
                    drawn.append([(top, thought.sampled_ids)])
                    segments.append((branch, root, position))
                    continuations.append(len(segments))
                    held_out = ids[position : position + horizon]
                    segments.append((held_out, top, len(branch)))
                    if len(thought.answer_ids):
                        drawn[-1].append((len(segments), thought.answer_ids))
                        segments.append((thought.answer_ids, top, len(branch)))
        tree = TokenTree.build(segments)

        # Row 0 of a thought is the open marker; it predicts the first sampled token. The end of
        # the thought's branch predicts the first token of the answer.
        sampled_rows = [
            tree.predicting_rows(s) if part else tree.rows(s)[: len(ids)]
            for pieces in drawn
            for part, (s, ids) in enumerate(pieces)
        ]
        counts = _ids([sum(len(ids) for _, ids in pieces) for pieces in drawn])
        positions, groups = len(empty), len(drawn) // max(len(empty), 1)
        first_rows = _ids([tree.layout.offsets[root] + p - 1 for root, p in empty])
        empty_rows = first_rows[:, None] + torch.arange(horizon)
        return cls(
            tree=tree,
            thought_rows=torch.cat([_ids([]), *sampled_rows]),
            thought_targets=torch.cat([_ids([]), *(ids for p in drawn for _, ids in p)]),
            thought_index=torch.repeat_interleave(torch.arange(len(drawn)), counts),
            think_rows_PGH=torch.cat(
                [_ids([]), *(tree.predicting_rows(s) for s in continuations)]
            ).view(positions, groups, horizon),
            empty_rows_PH=empty_rows,
            continuation_PH=tree.token_ids[empty_rows + 1],
            context_rows=torch.cat([_ids([]), *(tree.rows(s)[:-1] for s in roots)]),
        )


def thought_branch(
    sampled_ids: Tensor, closed: bool, think_open_id: int, think_close_id: int
) -> Tensor:
    """`<think> sampled… </think>`: the close marker is sampled, or appended by force."""
    pieces = [sampled_ids.new_tensor([think_open_id]), sampled_ids]
    if not closed:
        pieces.append(sampled_ids.new_tensor([think_close_id]))
    return torch.cat(pieces)


def tree_tokens(rollout: Rollout, horizon: int) -> int:
    """Tokens of a rollout's tree: its context once, and every branch."""
    ends = (horizon + len(t.answer_ids) for group in rollout.thoughts for t in group)
    return len(rollout.context) + sum(_thought_lengths(rollout)) + sum(ends)


def unshared_tokens(rollout: Rollout, horizon: int) -> int:
    """Tokens of the same computation with one sequence a thought and continuation, and one more a
    thought and answer: the two may not see each other.
    """
    if not rollout.positions:
        return len(rollout.context)
    before = [
        p for p, group in zip(rollout.positions, rollout.thoughts, strict=True) for _ in group
    ]
    answers = [len(t.answer_ids) for group in rollout.thoughts for t in group]
    return sum(
        prefix + thought + horizon + ((prefix + thought + answer) if answer else 0)
        for prefix, thought, answer in zip(before, _thought_lengths(rollout), answers, strict=True)
    )


def _ids(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def _thought_lengths(rollout: Rollout) -> list[int]:
    """Of every thought with its markers."""
    return [
        1 + t.sampled_ids.shape[0] + int(not t.closed) for group in rollout.thoughts for t in group
    ]
