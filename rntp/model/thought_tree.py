"""Token trees: a document and everything that branches off it, as one packed stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from rntp_kernels import TreeAttention, TreeLayout, TwoPasses
from rntp_kernels.tree_attention.layout import ROOT
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.reading import BRANCHES, LossReads, bare_readings, read_behind
from rntp.model.routing import Routed, watched_routers
from rntp.model.tree_sizes import branch_tokens, page_tokens, reads_page
from rntp.model.unshared import run_forest
from rntp.types import Rollout, Thought


class Trunk(NamedTuple):
    """What a forward gives. hidden: [N, H]. routed: of each layer of experts, what its router said
    of the tokens that learn, every one once; empty where nobody watched, or without experts."""

    hidden: Tensor
    routed: tuple[Routed, ...] = ()


@dataclass(frozen=True)
class TokenTree:
    """Tokens of a forest of segments. token_ids: int64 [N], in the order of `layout`.

    learning: how many segments, the first ones, have gradients; None for all.

    >>> tree = TokenTree.build([(document, -1, 0), (thought, 0, p), (continuation, 1, n)])
    """

    token_ids: Tensor
    layout: TreeLayout
    learning: int | None = None

    @classmethod
    def build(
        cls, segments: Sequence[tuple[Tensor, int, int]], learning: int | None = None
    ) -> Self:
        """Build from (token ids, parent segment or -1, how many of the parent's tokens it sees).

        Raises ValueError if the segments are no forest; see TreeLayout.
        """
        layout = TreeLayout(
            lengths=tuple(len(ids) for ids, _, _ in segments),
            parents=tuple(parent for _, parent, _ in segments),
            attach=tuple(attach for _, _, attach in segments),
        )
        return cls(torch.cat([ids for ids, _, _ in segments]), layout, learning)

    def rows(self, segment: int) -> Tensor:
        """int64 [n]: rows of a segment's tokens."""
        return torch.arange(self.layout.offsets[segment], self.layout.offsets[segment + 1])

    @property
    def num_learning(self) -> int:
        """Tokens that have gradients, where any have."""
        segments = len(self.layout.lengths) if self.learning is None else self.learning
        return self.layout.offsets[segments]

    def learning_part(self) -> "TokenTree":
        """The segments that have gradients, alone."""
        n = self.num_learning
        return TokenTree(self.token_ids[:n], self.layout.until(self.layout.offsets.index(n)))

    def hidden(self, model: LanguageModel) -> Tensor:
        """The one trunk forward: last hidden states, [N, H], with gradients if they are on.

        Segments that do not learn go through the trunk behind the others, without a graph: every
        token still goes through it once. A model that shares nothing runs a sequence a branch.
        """
        return self.run(model).hidden

    def run(self, model: LanguageModel, *, watch: bool = False) -> Trunk:
        """The same with what routers said of the tokens that learn, if they are watched."""
        device, learning = model.device, self.num_learning
        ids, positions = self.token_ids.to(device), self.layout.position_ids().to(device)
        if not torch.is_grad_enabled() or learning == len(ids):
            if model.plain is not None:
                hidden, seen = run_forest(model.hf, model.plain, ids, self.layout, watch=watch)
            else:
                with watched_routers(model.hf, watch) as seen:
                    hidden = model.hidden(ids, positions, TreeAttention(self.layout, device))
            return Trunk(hidden, tuple(r.until(learning) for r in seen))
        assert self.learning is not None
        if model.plain is not None:
            first = self.layout.until(self.learning)
            hidden, seen = run_forest(model.hf, model.plain, ids[:learning], first, watch=watch)
            with torch.no_grad():
                rest, _ = run_forest(model.hf, model.plain, ids, self.layout, self.learning)
            return Trunk(torch.cat([hidden, rest]), tuple(seen))
        passes = TwoPasses(self.layout, self.learning, device)
        with watched_routers(model.hf, watch) as seen:
            hidden = model.hidden(ids[:learning], positions[:learning], passes.leading)
        with torch.no_grad():
            rest = model.hidden(ids[learning:], positions[learning:], passes.trailing)
        return Trunk(torch.cat([hidden, rest]), tuple(seen))


@dataclass(frozen=True)
class ThoughtTree:
    """The tree of a microbatch of rollouts, and which row predicts what.

    P positions in all, G thoughts each, H continuation tokens, M sampled tokens: of each thought
    and then of its answer. thought_rows, thought_targets: int64 [M], for the tokens that were
    sampled (forced markers are not). thought_index: int64 [M], the thought p·G + g of each.
    think_rows_PGH, no_think_rows_PH: rows that predict the continuation with and without the
    thought. whole_rows_PH: those of the page, which see all of the context; they are the latter
    where there is no reading window. continuation_PH: its ids. context_rows, context_targets:
    int64, for plain next-token prediction on the contexts, without what tools gave; those left out
    that hold earlier thoughts: their pages are there, or in another microbatch, without them; empty
    where `reads.context` is false. scored_PH: bool, which continuation tokens are predicted: not
    those behind a task's answer; None where all are.
    """

    tree: TokenTree
    reads: LossReads
    thought_rows: Tensor
    thought_targets: Tensor
    thought_index: Tensor
    think_rows_PGH: Tensor
    no_think_rows_PH: Tensor
    whole_rows_PH: Tensor
    continuation_PH: Tensor
    context_rows: Tensor
    context_targets: Tensor
    scored_PH: Tensor | None = None

    @classmethod
    def build(
        cls,
        rollouts: Sequence[Rollout],
        *,
        think_open_id: int,
        think_close_id: int,
        horizon: int,
        reads: LossReads = BRANCHES,
        start_id: int | None = None,
    ) -> Self:
        """Lay out documents and branches: context ─ thought ─ continuation and answer.

        For a page of 6 tokens, one position p 3, one thought of 2 tokens and horizon 3, row numbers
        above the tokens, where continuations learn (`reads.continuation`):

             0    1    2    3    4
            x0 ─ x1 ─ x2 ─ x3 ─ x4               page: x5 predicts nothing
                       └──── 5   6    7    8
                             <   t0   t1   >     thought, read behind x2
                                           └──── 9   10
                                                 x3   x4     continuation: x5 predicts nothing

        Row 5 predicts t0, row 6 t1 and row 7 the close marker (thought_rows, as far as it was
        sampled); rows 8, 9, 10 predict x3, x4, x5 with the thought (think_rows_PGH), rows 2, 3, 4
        without it (no_think_rows_PH).

        Continuation and answer hang at the end of the thought, side by side: neither sees the
        other. Tokens that predict nothing are left out: the last of a continuation, of an answer
        and of a page, and what a page has behind its last continuation. Where continuations do not
        learn, tokens that lead to nothing but them make the last segments, without gradients.

        With a reading window no continuation hangs at a thought: each is read in a root of its own,
        with the memory and without; see `rntp.model.reading`. start_id: of the token before both.
        """
        markers = (think_open_id, think_close_id)
        plan = _list_segments(rollouts, markers, horizon, reads, start_id)
        tree, rows = _lay_out(plan)
        # Row 0 of a thought is the open marker; it predicts the first sampled token. The end of
        # the thought's branch predicts the first token of the answer, and of the continuation.
        sampled_rows, think_rows = [], []
        for thought, continuation, answer in plan.branches:
            sampled_rows.append(thought.drawn(rows(answer)[: len(thought.sampled_ids)]))
            if len(thought.answer_ids):
                sampled_rows.append(rows(answer)[-len(thought.answer_ids) :])
            think_rows.append(rows(continuation)[-horizon:])
        whole_rows, continuation_ids, context_rows, context_targets = [], [], [], []
        for rollout, path in plan.pages:
            ids, page_rows = rollout.context.token_ids, rows(path)
            for p in rollout.positions:
                whole_rows.append(page_rows[p - 1 : p - 1 + horizon])
                continuation_ids.append(ids[p : p + horizon])
            if reads_page(rollout, reads):
                predicted = rollout.context.predicted
                context_rows.append(page_rows[predicted - 1])
                context_targets.append(ids[predicted])
        thoughts = [branch.thought for branch in plan.branches]
        shape_PH = len(whole_rows), horizon
        groups = len(thoughts) // max(len(whole_rows), 1)
        whole_rows_PH = _cat(whole_rows).view(shape_PH)
        bare = [rows([segment])[-horizon:] for segment in plan.bare]
        return cls(
            tree=tree,
            reads=reads,
            thought_rows=_cat(sampled_rows),
            thought_targets=_cat(
                [ids for t in thoughts for ids in (t.drawn(t.sampled_ids), t.answer_ids)]
            ),
            thought_index=torch.repeat_interleave(
                torch.arange(len(thoughts)), _ids([t.num_drawn for t in thoughts])
            ),
            think_rows_PGH=_cat(think_rows).view(len(whole_rows), groups, horizon),
            no_think_rows_PH=_cat(bare).view(shape_PH) if bare else whole_rows_PH,
            whole_rows_PH=whole_rows_PH,
            continuation_PH=_cat(continuation_ids).view(shape_PH),
            context_rows=_cat(context_rows),
            context_targets=_cat(context_targets),
            scored_PH=_scored(rollouts, horizon),
        )


class _Plan:
    """The segments of a tree before they are laid out.

    segments: (token ids, number of the parent, tokens of the parent that it sees), parents first.
    silent: numbers of those without gradients. pages: rollouts, each with the segments that its
    page is cut into. branches: thoughts, each with the ways behind it. bare: readings of a window
    without a memory, one a position.
    """

    def __init__(self) -> None:
        self.segments: list[tuple[Tensor, int, int]] = []
        self.silent: set[int] = set()
        self.pages: list[tuple[Rollout, list[int]]] = []
        self.branches: list[_Branch] = []
        self.bare: list[int] = []

    def add(self, ids: Tensor, parent: int, attach: int) -> int:
        """Hang a segment behind so many tokens of its parent; its number."""
        self.segments.append((ids, parent, attach))
        return len(self.segments) - 1

    def hang(self, ids: Tensor, parent: int, learns: bool = True) -> list[int]:
        """Hang a segment at the end of its parent; its number, or none if there are no ids."""
        if not len(ids):
            return []
        number = self.add(ids, parent, len(self.segments[parent][0]))
        if not learns:
            self.silent.add(number)
        return [number]

    def read(self, ids: Tensor, learns: bool) -> int:
        """Add a sequence of its own; its number."""
        number = self.add(ids, ROOT, 0)
        if not learns:
            self.silent.add(number)
        return number


def _list_segments(
    rollouts: Sequence[Rollout],
    markers: tuple[int, int],
    horizon: int,
    reads: LossReads,
    start_id: int | None,
) -> _Plan:
    """List what hangs where. markers: ids of the open and of the close one."""
    plan = _Plan()
    for rollout in rollouts:
        ids = rollout.context.token_ids
        kept, stop = page_tokens(rollout, horizon, reads)
        root = plan.add(ids[:kept], ROOT, 0)
        plan.pages.append((rollout, [root, *plan.hang(ids[kept:stop], root, learns=False)]))
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            for thought in group:
                branch = thought_branch(thought.sampled_ids, thought.closed, *markers)
                kept = branch_tokens(thought, reads)
                top = plan.add(branch[:kept], root, position)
                if reads.window is None:
                    held_out = torch.cat([branch[kept:], ids[position : position + horizon - 1]])
                    continuation = [top, *plan.hang(held_out, top, reads.continuation)]
                else:
                    behind = read_behind(rollout, position, reads.window, horizon)
                    memory = memory_branch(thought, *markers)
                    reading = torch.cat([ids.new_tensor([start_id]), memory, behind])
                    continuation = [plan.read(reading, reads.continuation)]
                answer = [top, *plan.hang(thought.answer_ids[:-1], top)]
                plan.branches.append(_Branch(thought, continuation, answer))
    if reads.window is not None:
        assert start_id is not None
        for reading in bare_readings(rollouts, reads.window, horizon, start_id):
            plan.bare.append(plan.read(reading, reads.continuation))
    return plan


def _lay_out(plan: _Plan) -> tuple[TokenTree, Callable[[list[int]], Tensor]]:
    """Put the segments in a row, those with gradients first; and the rows of any of them."""
    order = sorted(range(len(plan.segments)), key=plan.silent.__contains__)  # stable
    place = {ROOT: ROOT} | {segment: number for number, segment in enumerate(order)}
    tree = TokenTree.build(
        [
            (ids, place[parent], attach)
            for ids, parent, attach in (plan.segments[number] for number in order)
        ],
        learning=len(order) - len(plan.silent),
    )
    return tree, lambda path: torch.cat([tree.rows(place[segment]) for segment in path])


class _Branch(NamedTuple):
    """Where a thought lies, and what hangs at its end: numbers of segments, the thought's own
    first, unless the continuation is read behind a window. A way has no other where one token
    follows, which predicts nothing."""

    thought: Thought
    continuation: list[int]
    answer: list[int]


def thought_branch(
    sampled_ids: Tensor, closed: bool, think_open_id: int, think_close_id: int
) -> Tensor:
    """`<think> sampled… </think>`: the close marker is sampled, or appended by force."""
    pieces = [sampled_ids.new_tensor([think_open_id]), sampled_ids]
    if not closed:
        pieces.append(sampled_ids.new_tensor([think_close_id]))
    return torch.cat(pieces)


def memory_branch(thought: Thought, think_open_id: int, think_close_id: int) -> Tensor:
    """The same of what a reading window reads of a thought; see `Thought.read_ids`."""
    return thought_branch(thought.read_ids, thought.closed, think_open_id, think_close_id)


def live(rollouts: Sequence[Rollout], live_P: Tensor, reads: LossReads) -> list[Rollout]:
    """Keep what a loss reads that reads the positions of live_P, bool [P], alone. The first of all
    where it names none, since a backward has to have something."""
    if not live_P.any():
        live_P = torch.arange(len(live_P)) == 0
    sizes = [len(r.positions) for r in rollouts]
    found = []
    for rollout, kept in zip(rollouts, live_P.split(sizes), strict=True):
        if kept.any() or reads_page(rollout, reads):
            positions = zip(rollout.positions, rollout.thoughts, kept.tolist(), strict=True)
            pairs = [(position, group) for position, group, keep in positions if keep]
            found.append(
                replace(
                    rollout,
                    positions=tuple(position for position, _ in pairs),
                    thoughts=tuple(group for _, group in pairs),
                    entropy=rollout.entropy[kept],
                    nll=rollout.nll[kept],
                )
            )
    return found


def _scored(rollouts: Sequence[Rollout], horizon: int) -> Tensor | None:
    """Tell which continuation tokens are predicted, bool [P, H]; None where all are."""
    if all(rollout.context.task is None for rollout in rollouts):
        return None
    counts_P = [r.context.num_scored(horizon) for r in rollouts for _ in r.positions]
    return torch.arange(horizon) < _ids(counts_P)[:, None]


def _ids(numbers: list[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    """Join, int64; nothing gives no ids."""
    return torch.cat([_ids([]), *parts])
