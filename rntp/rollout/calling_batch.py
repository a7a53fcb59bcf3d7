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

import torch
from rntp_kernels.tree_attention import DecodeAttention
from torch import Tensor

from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.rollout.calling_branch import CallingBranch, results
from rntp.rollout.static_batch import Branches, TokenSampler
from rntp.rollout.tool_calls import ToolCalls
from rntp.types import Context, Thought

FED_TOGETHER = 8  # see `fed_together`


class CallingBatch:
    """See the module; the parts are those of `rntp.rollout.compacting_batch`.

    goes_on: answers come behind the thoughts, so that a last result has to be fed, too.
    """

    def __init__(
        self,
        model: LanguageModel,
        branches: Branches,
        attention: DecodeAttention,
        chance: TokenSampler,
        tools: ToolCalls,
        *,
        goes_on: bool,
    ) -> None:
        self._model = model
        self._branches = branches
        self._attention = attention
        self._chance = chance
        self._tools = tools
        self._goes_on = goes_on

    def run(self, contexts: Sequence[Context], budget: int, check: Check) -> list[Thought]:
        """Draw a thought of at most `budget` tokens for every branch.

        contexts: of the D documents. The attention is left with all that the branches have seen.
        """
        width = self._branches.visible.shape[1]
        all_of = [
            CallingBranch.begin(contexts[n // width], position, self._tools)
            for n, position in enumerate(self._branches.position.tolist())
        ]
        self._open()
        while True:
            check()
            self._give(all_of, results(all_of, self._tools), check)
            if all(branch.ended for branch in all_of):
                break
            if not any(branch.decodes for branch in all_of):
                self._tools.desk.pause()
                continue
            draw, logprob = self._draw(all_of)
            for n, (token, value) in enumerate(zip(draw.tolist(), logprob.tolist(), strict=True)):
                if all_of[n].decodes:
                    all_of[n].draw(token, value, self._tools, budget)
        return [branch.thought() for branch in all_of]

    def _open(self) -> None:
        """Feed all branches what every thought begins with, but for its last token, as `_give`."""
        position = self._branches.position
        for number, token in enumerate([self._model.think_open_id, *self._tools.opening][:-1]):
            self._model.hidden(torch.full_like(position, token), position + number, self._attention)
            self._attention.advance()

    def _give(
        self, all_of: list[CallingBranch], given: Sequence[tuple[int, list[int]]], check: Check
    ) -> None:
        """Feed branches their last token and a result, but for the token that ends it, which the
        next draw is made from. given: which branch, and the ids of its result."""
        for n, result in given:
            if all_of[n].spent and not self._goes_on:
                all_of[n].read(result)
        given = [(n, result) for n, result in given if not all_of[n].ended]
        if not given:
            return
        position, device = self._rewind(all_of), self._branches.position.device
        together = fed_together(device)
        for first in range(0, len(given), together):
            check()
            some = given[first : first + together]
            fed = [[self._to_feed(all_of[n]), *result[:-1]] for n, result in some]
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
            all_of[n].read(result)

    def _draw(self, all_of: list[CallingBranch]) -> tuple[Tensor, Tensor]:
        """Feed every branch its next token: draws and their log-probs, [N]. Of those that do not
        decode both are nothing: their next token will be fed once more."""
        position = self._rewind(all_of)
        token = torch.tensor([self._to_feed(b) for b in all_of], device=position.device)
        number = torch.tensor([branch.drawn for branch in all_of], device=position.device)
        hidden = self._model.hidden(token, position, self._attention)
        return self._chance.next_token(self._model.logits(hidden), self._branches, number)

    def _to_feed(self, branch: CallingBranch) -> int:
        """The token that the model sees next: it has seen the open marker and all others."""
        return branch.ids[-1] if branch.ids else self._model.think_open_id

    def _rewind(self, all_of: list[CallingBranch]) -> Tensor:
        """Let the attention go on from where each branch is: positions of their next tokens, int64
        [N]."""
        branches = self._branches
        seen = torch.tensor([len(branch.ids) for branch in all_of], device=branches.position.device)
        self._attention.rewind(seen.view(branches.visible.shape))
        return branches.position + seen


def fed_together(device: torch.device) -> int:
    """Count the branches that a pass feeds.

    On the CPU one: for other numbers of rows the library adds up the terms of a product in another
    order, so that what a branch is fed would depend on the branches beside it. Elsewhere, where a
    small pass costs what starting its kernels costs, always as many, of one width.
    """
    return 1 if device.type == "cpu" else FED_TOGETHER
