"""Decoding branches that stop for tools and go on with what these give.

A branch that has written a call stops; the others decode on. Once its outcome is there the branch
is fed the result, a token a step beside the others' draws, and then draws again. Chance goes by the
number of the draw, and storage is read at its full width: what a branch draws depends neither on
when an outcome comes nor on the branches beside it.
"""

from collections import deque
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


@dataclass(slots=True)
class _Branch:
    """One thought in the making.

    ids, logprobs, given: of its tokens so far. to_feed: the token that the model sees next.
    to_give: of a result, what is still to come. opened: where in ids the call begins that is being
    written, or −1. waits: the call that it has stopped for, and its ids.
    """

    to_feed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)
    to_give: deque[int] = field(default_factory=deque)
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
        shape, device = branches.visible.shape, branches.visible.device
        all_of = [_Branch(self._model.think_open_id) for _ in range(len(branches.position))]
        self._positions = branches.position.tolist()
        some = list(range(len(all_of)))  # which of them the attention holds
        seen = torch.zeros(len(all_of), dtype=torch.int64, device=device)
        attention.rewind(seen.view(shape))
        wider: list[tuple[DecodeAttention, Tensor]] = []
        while True:
            check()
            self._take_outcomes(all_of)
            if all(branch.ended for branch in all_of):
                break
            if not any(branch.decodes for branch in all_of):
                self._tools.desk.pause()
                continue
            row = [all_of[n] for n in some]
            going = torch.tensor([branch.decodes for branch in row], device=device)
            draw, logprob = self._feed(row, seen, branches, attention)
            seen = seen + going
            attention.rewind(seen.view(branches.visible.shape))
            for n, token, value in zip(some, draw.tolist(), logprob.tolist(), strict=True):
                if all_of[n].decodes:
                    self._take(n, all_of[n], token, value)
            ended = torch.tensor([branch.ended for branch in row]).view(branches.visible.shape)
            kept = None if ended.all() else going_on(ended)
            if kept is not None:
                kept = kept.to(device)
                wider.append((attention, kept))
                rows = flat_rows(kept, branches.visible.shape[1])
                some, seen = [some[n] for n in rows.tolist()], seen[rows]
                attention, branches = attention.narrowed(kept), branches.some(kept)
        for wide, kept in reversed(wider):
            wide.take_back(attention, kept)
            attention = wide
        return [branch.thought() for branch in all_of]

    def _feed(
        self,
        row: list[_Branch],
        seen: Tensor,
        branches: Branches,
        attention: DecodeAttention,
    ) -> tuple[Tensor, Tensor]:
        """Feed every branch its next token: draws and their log-probs, [N']. Of those that do not
        decode both are nothing: their next token will be fed once more."""
        token = torch.tensor([branch.to_feed for branch in row], device=seen.device)
        number = torch.tensor([branch.drawn for branch in row], device=seen.device)
        hidden = self._model.hidden(token, branches.position + seen, attention)
        return self._chance.next_token(self._model.logits(hidden), branches, number)

    def _take(self, n: int, branch: _Branch, token: int, logprob: float) -> None:
        """Go on by one token: one that a tool gives, or the one that was drawn."""
        if branch.to_give:
            branch.add(branch.to_give.popleft(), 0.0, True)
            return
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

    def _take_outcomes(self, all_of: list[_Branch]) -> None:
        """Let branches go on whose outcomes are there."""
        waiting = [(branch, branch.waits) for branch in all_of if branch.waits is not None]
        if not waiting:
            return
        outcomes = self._tools.desk.settle([asked for _, (asked, _) in waiting], wait=False)
        for (branch, (_, call)), outcome in zip(waiting, outcomes, strict=True):
            if outcome is not None:
                branch.waits = None
                branch.calls.append(self._tools.record(call, outcome))
                branch.to_give.extend(self._tools.result(outcome))
