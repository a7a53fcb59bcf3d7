"""A thought in the making that may stop for tools: what it has drawn, and what it was given."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rntp.rollout import Check
from rntp.rollout.tool_calls import TOO_MANY, ToolCalls
from rntp.tools.desk import Ask
from rntp.tools.page import Outcome
from rntp.types import Context, Thought, ToolCall


@dataclass(slots=True)
class CallingBranch:
    """One thought in the making.

    context, position: where it branches off. ids, logprobs, given: of its tokens so far, without
    the open marker. opened: where in ids the call begins that is being written, or −1. drawn:
    tokens that were drawn. waits: the call that it has stopped for, and its ids. spent: it has
    drawn all that it may, and its result is the last that it reads.
    """

    context: Context
    position: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)
    opened: int = -1
    drawn: int = 0
    waits: tuple[Ask, list[int]] | None = None
    calls: list[ToolCall] = field(default_factory=list)
    closed: bool = False
    spent: bool = False
    ended: bool = False

    @classmethod
    def begin(cls, context: Context, position: int, tools: ToolCalls) -> "CallingBranch":
        """A thought of which nothing is drawn yet."""
        branch = cls(context, position)
        branch.read(tools.opening)
        branch.opened = 1 if tools.opening else -1
        return branch

    @property
    def decodes(self) -> bool:
        return not self.ended and self.waits is None

    def draw(self, token: int, logprob: float, tools: ToolCalls, budget: int) -> None:
        """Go on by a token that was drawn, of at most `budget`; a whole call is handed in.

        Where every thought begins with a call, one that the budget cuts is handed in as it stands:
        a model that has never called does not know how a call ends.
        """
        self._add(token, logprob, given=False)
        opening, closing = tools.model.tool_ids[:2]
        self.drawn += 1
        if token == opening:
            self.opened = len(self.ids)
        calling = self.opened >= 0
        self.closed = token == tools.model.think_close_id
        at_end = self.closed or self.drawn == budget
        self.spent = bool(tools.opening) and calling and at_end and not self.closed
        self.ended = at_end and not self.spent
        if calling and token == closing and not self.ended:
            self._call(self.ids[self.opened : -1], tools)
        elif self.spent:
            self._call(self.ids[self.opened :], tools)

    def _call(self, call: list[int], tools: ToolCalls) -> None:
        self.opened = -1
        if len(self.calls) < tools.calls:
            self.waits = tools.ask(call, self.context, self.position), call
        else:
            self.calls.append(tools.record(call, TOO_MANY))
            self.ended = self.spent

    def answer(self, outcome: Outcome, tools: ToolCalls) -> None:
        """Take what the call has come to that the branch waits for."""
        assert self.waits is not None
        (_, call), self.waits = self.waits, None
        cut = self.ids[-1] != tools.model.tool_ids[1]
        self.calls.append(tools.record(call, outcome, cut=cut))

    def read(self, result: Sequence[int]) -> None:
        """Go on by ids that the model is fed and did not draw; a result may be the end."""
        for token in result:
            self._add(token, 0.0, given=True)
        self.ended = self.spent

    def thought(self) -> Thought:
        """What has come of it."""
        given = torch.tensor(self.given if any(self.given) else [], dtype=torch.bool)
        return Thought(
            torch.tensor(self.ids, dtype=torch.int64),
            torch.tensor(self.logprobs, dtype=torch.float64).float(),
            self.closed,
            given=given,
            calls=tuple(self.calls),
        )

    def _add(self, token: int, logprob: float, *, given: bool) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.given.append(given)


def results(branches: Sequence[CallingBranch], tools: ToolCalls) -> list[tuple[int, list[int]]]:
    """Let branches go on whose outcomes are there: which, and the ids of the result of each, which
    they have yet to be fed."""
    waiting = [(n, b.waits[0]) for n, b in enumerate(branches) if b.waits is not None]
    if not waiting:
        return []
    outcomes = tools.desk.settle([asked for _, asked in waiting], wait=False)
    found = []
    for (n, _), outcome in zip(waiting, outcomes, strict=True):
        if outcome is not None:
            branches[n].answer(outcome, tools)
            found.append((n, tools.result(outcome)))
    return found


def read_results(branches: Sequence[CallingBranch], tools: ToolCalls, check: Check) -> None:
    """Wait until no branch waits any more, and let each read what its call has brought."""
    while any(branch.waits for branch in branches):
        for n, result in results(branches, tools):
            branches[n].read(result)
        check()
        if any(branch.waits for branch in branches):
            tools.desk.pause()
