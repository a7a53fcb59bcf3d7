"""Decoding branches that stop for tools and go on with what these give.

A branch that has written a call stops; the others decode on. Once its outcome is there the branch
is fed the result in one pass, and draws again beside the others. Chance goes by the number of the
draw, storage is read at its full width, and on the CPU a pass is of one branch alone: what a branch
draws depends neither on when an outcome comes nor on the branches beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rntp_kernels.tree_attention import DecodeAttention
from torch import Tensor

from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.rollout.compacting_batch import going_on
from rntp.rollout.static_batch import Branches, TokenSampler, flat_rows
from rntp.rollout.tool_calls import ToolCalls
from rntp.tools.desk import Ask
from rntp.tools.page import Outcome
from rntp.types import Context, Thought, ToolCall

TOO_MANY = Outcome("", "", "too_many_calls")
FED_TOGETHER = 8


@dataclass(slots=True)
class _Branch:
    """One thought in the making.

    ids, logprobs, given: of its tokens so far; the model has seen the open marker and all of them
    but the last. to_feed: the token that the model sees next. opened: where in ids the call begins
    that is being written, or −1. waits: the call that it has stopped for, and its ids.
    """

    to_feed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)
    opened: int = -1
    drawn: int = 0
    waits: tuple[Ask, list[int]] | None = None
    calls: list[ToolCall] = field(default_factory=list)
    closed: bool = False
    ended: bool = False

    @property
    def decodes(self) -> bool:
        return not self.ended and self.waits is None

    def add(self, token: int, logprob: float, given: bool) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.given.append(given)
        self.to_feed = token

    def thought(self) -> Thought:
        given = torch.tensor(self.given if any(self.given) else [], dtype=torch.bool)
        return Thought(
            torch.tensor(self.ids, dtype=torch.int64),
            torch.tensor(self.logprobs, dtype=torch.float64).float(),
            self.closed,
            given=given,
            calls=tuple(self.calls),
        )


class CallingBatch:
    """See the module; the parts are those of `rntp.rollout.compacting_batch`."""

    def __init__(
        self,
        model: LanguageModel,
        branches: Branches,
        attention: DecodeAttention,
        chance: TokenSampler,
        tools: ToolCalls,
    ) -> None:
        self._model = model
        self._branches = branches
        self._attention = attention
        self._chance = chance
        self._tools = tools
        self._tool_open, self._tool_close = model.tool_ids[:2]

    def run(self, contexts: Sequence[Context], budget: int, check: Check) -> list[Thought]:
        """Draw a thought of at most `budget` tokens for every branch.

        contexts: of the D documents. The attention is left with all that the branches have seen.
        """
        self._budget, self._contexts = budget, contexts
        branches, attention = self._branches, self._attention
        all_of = [_Branch(self._model.think_open_id) for _ in range(len(branches.position))]
        self._positions = branches.position.tolist()
        some = list(range(len(all_of)))  # which of them the attention holds
        wider: list[tuple[DecodeAttention, Tensor]] = []
        while True:
            check()
            given = self._take_outcomes(all_of)
            if all(branch.ended for branch in all_of):
                break
            if not any(branch.decodes for branch in all_of):
                self._tools.desk.pause()
                continue
            row = [all_of[n] for n in some]
            if given:
                to_give = [(some.index(n), result) for n, result in given.items()]
                self._give(row, to_give, branches, attention, check)
            draw, logprob = self._draw(row, branches, attention)
            for n, token, value in zip(some, draw.tolist(), logprob.tolist(), strict=True):
                if all_of[n].decodes:
                    self._take(n, all_of[n], token, value)
            ended = torch.tensor([branch.ended for branch in row]).view(branches.visible.shape)
            kept = None if ended.all() else going_on(ended)
            if kept is not None:
                kept = kept.to(branches.visible.device)
                wider.append((attention, kept))
                some = [some[n] for n in flat_rows(kept, branches.visible.shape[1]).tolist()]
                attention, branches = attention.narrowed(kept), branches.some(kept)
        for wide, kept in reversed(wider):
            wide.take_back(attention, kept)
            attention = wide
        return [branch.thought() for branch in all_of]

    def _give(
        self,
        row: list[_Branch],
        to_give: Sequence[tuple[int, list[int]]],
        branches: Branches,
        attention: DecodeAttention,
        check: Check,
    ) -> None:
        """Feed branches their last token and a result, but for the token that ends it, which the
        next draw is made from. to_give: which of the rows, and the ids of its result."""
        seen, device = _rewind(row, branches, attention), branches.position.device
        together = fed_together(device)
        for first in range(0, len(to_give), together):
            check()
            some = to_give[first : first + together]
            fed = [[row[n].to_feed, *result[:-1]] for n, result in some]
            filling = together - len(some)  # of a pass: its first branch, which is fed nothing
            rows = [n for n, _ in some] + [some[0][0]] * filling
            counts = [len(ids) for ids in fed] + [0] * filling
            width = counts[0] if together == 1 else self._tools.result_tokens + 2
            token = torch.zeros(together, width, dtype=torch.int64)
            for r, ids in enumerate(fed):
                token[r, : len(ids)] = torch.tensor(ids)
            feeding = attention.feeding(rows, counts, width)
            position = (branches.position + seen)[rows, None] + feeding.offset
            self._model.hidden(token.flatten().to(device), position.flatten(), feeding)
        for n, result in to_give:
            for id_ in result:
                row[n].add(id_, 0.0, True)

    def _draw(
        self, row: list[_Branch], branches: Branches, attention: DecodeAttention
    ) -> tuple[Tensor, Tensor]:
        """Feed every branch its next token: draws and their log-probs, [N']. Of those that do not
        decode both are nothing: their next token will be fed once more."""
        seen = _rewind(row, branches, attention)
        token = torch.tensor([branch.to_feed for branch in row], device=seen.device)
        number = torch.tensor([branch.drawn for branch in row], device=seen.device)
        hidden = self._model.hidden(token, branches.position + seen, attention)
        return self._chance.next_token(self._model.logits(hidden), branches, number)

    def _take(self, n: int, branch: _Branch, token: int, logprob: float) -> None:
        """Go on by the token that was drawn."""
        branch.add(token, logprob, False)
        branch.drawn += 1
        branch.closed = token == self._model.think_close_id
        branch.ended = branch.closed or branch.drawn == self._budget
        if token == self._tool_open:
            branch.opened = len(branch.ids)
        elif token == self._tool_close and branch.opened >= 0 and not branch.ended:
            call, branch.opened = branch.ids[branch.opened : -1], -1
            if len(branch.calls) >= self._tools.calls:
                branch.calls.append(self._tools.record(call, TOO_MANY))
                return
            context = self._contexts[n // self._branches.visible.shape[1]]
            branch.waits = self._tools.ask(call, context, self._positions[n]), call

    def _take_outcomes(self, all_of: list[_Branch]) -> dict[int, list[int]]:
        """Let branches go on whose outcomes are there: the ids of the result of each, by its
        number."""
        waiting = [
            (n, *branch.waits) for n, branch in enumerate(all_of) if branch.waits is not None
        ]
        if not waiting:
            return {}
        outcomes = self._tools.desk.settle([asked for _, asked, _ in waiting], wait=False)
        given = {}
        for (n, _, call), outcome in zip(waiting, outcomes, strict=True):
            if outcome is not None:
                all_of[n].waits = None
                all_of[n].calls.append(self._tools.record(call, outcome))
                given[n] = self._tools.result(outcome)
        return given


def fed_together(device: torch.device) -> int:
    """Count the branches that a pass feeds.

    On the CPU one: for other numbers of rows the library adds up the terms of a product in another
    order, so that what a branch is fed would depend on the branches beside it. Elsewhere, where a
    small pass costs what starting its kernels costs, always as many, of one width.
    """
    return 1 if device.type == "cpu" else FED_TOGETHER


def _rewind(row: list[_Branch], branches: Branches, attention: DecodeAttention) -> Tensor:
    """Let the attention go on from where each branch is: tokens that it has seen, int64 [N']."""
    seen = torch.tensor([len(branch.ids) for branch in row], device=branches.visible.device)
    attention.rewind(seen.view(branches.visible.shape))
    return seen
