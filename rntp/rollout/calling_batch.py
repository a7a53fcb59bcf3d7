"""Decoding branches that stop for tools and go on with what these give.

A branch that has written a call stops; the others decode on. Once its outcome is there the branch
is fed the result in one pass, and draws again beside the others. Resume has to draw the same
thoughts, whenever outcomes come: chance goes by the number of the draw, storage is read at its full
width, branches that have ended go along, and on the CPU a pass feeds one branch alone. For the
library adds up the terms of a product in another order for another number of rows: where branches
that had ended were left out, 22 of 64 thoughts of SmolLM2-135M in bfloat16 changed with the seconds
that their calls took.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rntp_kernels.tree_attention import DecodeAttention
from torch import Tensor

from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.rollout.static_batch import Branches, TokenSampler
from rntp.rollout.tool_calls import TOO_MANY, ToolCalls
from rntp.tools.desk import Ask
from rntp.types import Context, Thought, ToolCall

FED_TOGETHER = 8  # see `fed_together`


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
        branches = self._branches
        all_of = [_Branch(self._model.think_open_id) for _ in range(len(branches.position))]
        self._positions = branches.position.tolist()
        while True:
            check()
            given = self._take_outcomes(all_of)
            if all(branch.ended for branch in all_of):
                break
            if not any(branch.decodes for branch in all_of):
                self._tools.desk.pause()
                continue
            self._give(all_of, given, check)
            draw, logprob = self._draw(all_of)
            for n, (token, value) in enumerate(zip(draw.tolist(), logprob.tolist(), strict=True)):
                if all_of[n].decodes:
                    self._take(n, all_of[n], token, value)
        return [branch.thought() for branch in all_of]

    def _give(
        self, all_of: list[_Branch], given: Sequence[tuple[int, list[int]]], check: Check
    ) -> None:
        """Feed branches their last token and a result, but for the token that ends it, which the
        next draw is made from. given: which branch, and the ids of its result."""
        if not given:
            return
        position, device = self._rewind(all_of), self._branches.position.device
        together = fed_together(device)
        for first in range(0, len(given), together):
            check()
            some = given[first : first + together]
            fed = [[all_of[n].to_feed, *result[:-1]] for n, result in some]
            filling = together - len(some)  # of a pass: its first branch, which is fed nothing
            rows = [n for n, _ in some] + [some[0][0]] * filling
            counts = [len(ids) for ids in fed] + [0] * filling
            width = counts[0] if together == 1 else self._tools.result_tokens + 2
            token = torch.zeros(together, width, dtype=torch.int64)
            for r, ids in enumerate(fed):
                token[r, : len(ids)] = torch.tensor(ids)
            feeding = self._attention.feeding(rows, counts, width)
            at = position[rows, None] + feeding.offset
            self._model.hidden(token.flatten().to(device), at.flatten(), feeding)
        for n, result in given:
            for id_ in result:
                all_of[n].add(id_, 0.0, True)

    def _draw(self, all_of: list[_Branch]) -> tuple[Tensor, Tensor]:
        """Feed every branch its next token: draws and their log-probs, [N]. Of those that do not
        decode both are nothing: their next token will be fed once more."""
        position = self._rewind(all_of)
        token = torch.tensor([branch.to_feed for branch in all_of], device=position.device)
        number = torch.tensor([branch.drawn for branch in all_of], device=position.device)
        hidden = self._model.hidden(token, position, self._attention)
        return self._chance.next_token(self._model.logits(hidden), self._branches, number)

    def _rewind(self, all_of: list[_Branch]) -> Tensor:
        """Let the attention go on from where each branch is: positions of their next tokens, int64
        [N]."""
        branches = self._branches
        seen = torch.tensor([len(branch.ids) for branch in all_of], device=branches.position.device)
        self._attention.rewind(seen.view(branches.visible.shape))
        return branches.position + seen

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

    def _take_outcomes(self, all_of: list[_Branch]) -> list[tuple[int, list[int]]]:
        """Let branches go on whose outcomes are there: which, and the ids of the result of each."""
        waiting = [(n, *b.waits) for n, b in enumerate(all_of) if b.waits is not None]
        if not waiting:
            return []
        outcomes = self._tools.desk.settle([asked for _, asked, _ in waiting], wait=False)
        given = []
        for (n, _, call), outcome in zip(waiting, outcomes, strict=True):
            if outcome is not None:
                all_of[n].waits = None
                all_of[n].calls.append(self._tools.record(call, outcome))
                given.append((n, self._tools.result(outcome)))
        return given


def fed_together(device: torch.device) -> int:
    """Count the branches that a pass feeds.

    On the CPU one: for other numbers of rows the library adds up the terms of a product in another
    order, so that what a branch is fed would depend on the branches beside it. Elsewhere, where a
    small pass costs what starting its kernels costs, always as many, of one width.
    """
    return 1 if device.type == "cpu" else FED_TOGETHER
