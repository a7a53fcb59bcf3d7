"""Decoding over storage that grows, for branches that get fewer.

It draws what `rntp.rollout.static_batch` draws with less work: the width of a product costs on a
CPU, and the start of a kernel does not. Branches that have ended go along until enough of them
have; then the others are gathered, and products, attention and draws are as much smaller.
"""

import torch
from rntp_kernels.tree_attention import DecodeAttention
from torch import Tensor

from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.rollout.static_batch import Branches, TokenSampler, flat_rows, still_going

# Branches are gathered in eights: with fewer than four rows a thread, the library adds up the terms
# of a product in another order, and what is drawn would depend on which branches have ended.
ROWS = 8
# Gathering copies what a branch has seen of itself, so a few less are not worth it.
LEFT = 0.75


class CompactingBatch:
    """See the module. stop_id: the token behind which a branch's draws do not count, or None."""

    def __init__(
        self,
        model: LanguageModel,
        branches: Branches,
        attention: DecodeAttention,
        chance: TokenSampler,
        stop_id: int | None,
    ) -> None:
        self._model = model
        self._branches = branches
        self._attention = attention
        self._chance = chance
        self._stop_id = stop_id

    def run(self, token_id: int, start: Tensor, budget: int, check: Check) -> tuple[Tensor, Tensor]:
        """Feed `token_id` at positions `start`, int64 [N], then what is drawn.

        Returns tokens and log-probs, [N, T] on the CPU, T <= budget; what follows a stop token is
        to be cut. The attention is left with all that the branches have seen up to their ends.
        """
        branches, attention = self._branches, self._attention
        token = torch.full_like(start, token_id)
        ended = torch.zeros_like(start, dtype=torch.bool)
        row = torch.arange(len(start), device=start.device)  # of the N, which still decode
        drawn: list[tuple[Tensor, Tensor, Tensor]] = []
        wider: list[tuple[DecodeAttention, Tensor]] = []
        for t in range(budget):
            check()
            token, logprob = self._draw(token, start + t, t, branches, attention)
            drawn.append((row, token, logprob))
            if self._stop_id is None:
                continue
            ended |= token == self._stop_id
            if ended.all():
                break
            kept = going_on(ended.view(branches.visible.shape))
            if kept is not None:
                wider.append((attention, kept))
                rows = flat_rows(kept, branches.visible.shape[1])
                row, start, token, ended = (x[rows] for x in (row, start, token, ended))
                attention, branches = attention.narrowed(kept), branches.some(kept)
        for wide, kept in reversed(wider):
            wide.take_back(attention, kept)
            attention = wide
        return _put_back(drawn, self._branches.position)

    def _draw(
        self,
        token: Tensor,
        position: Tensor,
        step: int,
        branches: Branches,
        attention: DecodeAttention,
    ) -> tuple[Tensor, Tensor]:
        """Feed a token a branch: the next one, and its log-prob."""
        hidden = self._model.hidden(token, position, attention)
        attention.advance()
        return self._chance.next_token(self._model.logits(hidden), branches, step)


def going_on(ended: Tensor) -> Tensor | None:
    """Choose which branches to go on with, int64 [D, B'] in rising order, or None for all.

    ended: bool [D, B]. As many of each document, a multiple of `ROWS`: some that have ended may be
    among them.
    """
    most = int((~ended).sum(dim=1).max())
    number = -(-most // ROWS) * ROWS
    return None if number > LEFT * ended.shape[1] else still_going(ended, number)


def _put_back(drawn: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, tokens and log-probs of each step -> tokens and log-probs of all rows, [N, T] on the
    CPU; zeros where a row no longer decoded. like: [N]."""
    ids = like.new_zeros(len(drawn), len(like))
    logprobs = drawn[0][2].new_zeros(ids.shape)
    for t, (row, token, logprob) in enumerate(drawn):
        ids[t, row], logprobs[t, row] = token, logprob
    return ids.T.cpu(), logprobs.T.cpu()
