"""What continuations are predicted to be behind their thoughts: by these alone, or mixed with what
is predicted without them, where the model has a head for that (`rntp.model.mixing`)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.mixing import Mixing, mixed_logp, mixed_probabilities
from rntp.model.thought_tree import ThoughtTree

_CHUNK_ROWS = 256


class Found(NamedTuple):
    """Log-probs of the targets and entropies, nats, and arg-max ids; [N] each."""

    logp: Tensor
    entropy: Tensor
    top1: Tensor


class Continued(NamedTuple):
    """Of each continuation token behind each thought, [P, G, H].

    logp: nats. match: it is the arg-max. collision: Σ_v p_v², or None where nobody asks. weight,
    alone: of a model that mixes, detached: w, and log-probs behind the thought alone, nats; else
    None.
    """

    logp: Tensor
    match: Tensor
    collision: Tensor | None
    weight: Tensor | None = None
    alone: Tensor | None = None

    def certain(self, sure: Callable[[Tensor, float], Tensor]) -> "Continued":
        """Put what a certain prediction has where nothing is predicted. sure: (values, value)."""
        return Continued(
            sure(self.logp, 0.0),
            sure(self.match, True),
            self.collision,
            None if self.weight is None else sure(self.weight, 0.0),
            None if self.alone is None else sure(self.alone, 0.0),
        )


def continued(
    model: LanguageModel,
    tree: ThoughtTree,
    hidden: Tensor,
    empty: Found,
    think: Found,
    *,
    with_collision: bool,
) -> Continued:
    """Read on behind the thoughts of a tree. hidden: its last hidden states, [N, H]. empty, think:
    what the head says without thoughts and with them, of P · H and of P · G · H tokens.

    Of a mixture, log-probs have gradients into both predictions and both hidden states.
    """
    shape, device = tree.think_rows_PGH.shape, hidden.device
    targets = tree.continuation_PH[:, None].expand(shape).to(device)
    match = think.top1.view(shape) == targets
    if model.mixing is None or not match.numel():
        collision = None
        if with_collision:
            rows = hidden.detach().index_select(0, tree.think_rows_PGH.flatten().to(device))
            collision = model.collision(rows).view(shape)
        return Continued(think.logp.view(shape), match, collision)
    log_odds = thought_log_odds(model.mixing, tree, hidden)
    shape_P1H = len(match), 1, match.shape[2]
    # An arg-max that both agree on is that of any mixture; elsewhere the vocabulary decides.
    differ = empty.top1.view(shape_P1H) != think.top1.view(shape)
    asked = torch.ones_like(match) if with_collision else differ
    top1, squares = _whole(model, tree, hidden, log_odds.detach(), asked)
    return Continued(
        mixed_logp(empty.logp.view(shape_P1H), think.logp.view(shape), log_odds),
        match.masked_scatter(asked, top1 == targets[asked]),
        squares.view(shape) if with_collision else None,
        log_odds.detach().sigmoid(),
        think.logp.detach().view(shape),
    )


def thought_log_odds(mixing: Mixing, tree: ThoughtTree, hidden: Tensor) -> Tensor:
    """Log-odds of each thought's weight at each continuation token, [P, G, H]."""
    device, width = hidden.device, hidden.shape[1]
    positions, _, horizon = tree.think_rows_PGH.shape
    # index_select, not indexing: its backward adds in a fixed order on the CPU.
    empty = hidden.index_select(0, tree.no_think_rows_PH.flatten().to(device))
    think = hidden.index_select(0, tree.think_rows_PGH.flatten().to(device))
    found: Tensor = mixing(
        empty.view(positions, 1, horizon, width), think.view(*tree.think_rows_PGH.shape, width)
    )
    return found


@torch.no_grad()
def _whole(
    model: LanguageModel, tree: ThoughtTree, hidden: Tensor, log_odds: Tensor, asked: Tensor
) -> tuple[Tensor, Tensor]:
    """The arg-max and Σ_v p_v² of mixtures, of those that are asked for, [n] each."""
    device, shape = hidden.device, tree.think_rows_PGH.shape
    of_think = tree.think_rows_PGH.to(device)[asked]
    of_empty = tree.no_think_rows_PH[:, None].expand(shape).to(device)[asked]
    top1 = [torch.zeros(0, dtype=torch.int64, device=device)]
    squares = [torch.zeros(0, device=device)]
    # In pieces: every row has as many logits as the vocabulary.
    for before, behind, odds in zip(
        of_empty.split(_CHUNK_ROWS),
        of_think.split(_CHUNK_ROWS),
        log_odds[asked].split(_CHUNK_ROWS),
        strict=True,
    ):
        p_NV = mixed_probabilities(model.logits(hidden[before]), model.logits(hidden[behind]), odds)
        top1.append(p_NV.argmax(dim=-1))
        squares.append(p_NV.square().sum(dim=-1))
    return torch.cat(top1), torch.cat(squares)
