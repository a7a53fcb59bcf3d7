"""A thought in the making that may stop for tools: what it has drawn, and what it was given."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from rntp.rollout import Check
from rntp.rollout.tool_calls import TOO_MANY, ToolCalls
from rntp.tools.desk import Ask
from rntp.types import Context, Thought, ToolCall


@dataclass(slots=True)
class CallingBranch:
    """One thought in the making.

    context, position: where it branches off. ids, logprobs, given: of its tokens so far, without
    the open marker. opened: where in ids the call begins that is being written, or −1. drawn:
    tokens that were drawn. waits: the call that it has stopped for, and its ids.
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
    ended: bool = False

    @property
    def decodes(self) -> bool:
        return not self.ended and self.waits is None

    def draw(self, token: int, logprob: float, tools: ToolCalls, budget: int) -> None:
        """Go on by a token that was drawn, of at most `budget`; a whole call is handed in."""
        self._add(token, logprob, given=False)
        opening, closing = tools.model.tool_ids[:2]
        self.drawn += 1
        self.closed = token == tools.model.think_close_id
        self.ended = self.closed or self.drawn == budget
        if token == opening:
            self.opened = len(self.ids)
        elif token == closing and self.opened >= 0 and not self.ended:
            call, self.opened = self.ids[self.opened : -1], -1
            if len(self.calls) >= tools.calls:
                self.calls.append(tools.record(call, TOO_MANY))
            else:
                self.waits = tools.ask(call, self.context, self.position), call

    def read(self, result: Sequence[int]) -> None:
        """Go on by the ids of a result, which the model is fed and did not draw."""
        for token in result:
            self._add(token, 0.0, given=True)

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
    waiting = [(n, *b.waits) for n, b in enumerate(branches) if b.waits is not None]
    if not waiting:
        return []
    outcomes = tools.desk.settle([asked for _, asked, _ in waiting], wait=False)
    found = []
    for (n, _, call), outcome in zip(waiting, outcomes, strict=True):
        if outcome is not None:
            branches[n].waits = None
            branches[n].calls.append(tools.record(call, outcome))
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
