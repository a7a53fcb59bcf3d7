"""How likely given continuations are after a text: at once, and after thoughts at its end.

It knows nothing of the harness. Continuations of the same text are judged after the same thoughts,
so that the choices of a question are compared under one train of thought.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rntp.config import Config
from rntp.harness.thinking import Ids, thoughts_after
from rntp.model import LanguageModel
from rntp.parallel import microbatches
from rntp.step import plant
from rntp.types import Context, Rollout, Thought

Choice = tuple[Ids, Ids]
"""Token ids of a text and of a continuation; neither is empty."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """logprob: of the whole continuation, nats. greedy: every token of it is the arg-max."""

    logprob: float
    greedy: bool


@torch.no_grad()
def likelihoods(
    model: LanguageModel, config: Config, choices: Sequence[Choice], *, thoughts: int
) -> list[Likelihood]:
    """One for each choice. thoughts: sampled at the end of each text; 0 is none.

    With thoughts the probability is the mean over them, (1/K) Σ p(continuation | text, thought k),
    and greedy holds if it does after more than half of them. Texts longer than the run's contexts
    lose their beginning.
    """
    cut = _cut(choices, config.data.context_tokens)
    texts = [text for text, _ in cut]
    groups = thoughts_after(model, config, texts, thoughts) if thoughts else {}
    found: dict[int, Likelihood] = {}
    # Of like length together: a batch is as wide as its longest continuation.
    order = sorted(range(len(cut)), key=lambda n: len(cut[n][1]))
    for first in range(0, len(order), config.rollout.docs_per_batch):
        some = order[first : first + config.rollout.docs_per_batch]
        found |= _judge(model, config, some, cut, groups)
    return [found[n] for n in range(len(cut))]


def _judge(
    model: LanguageModel,
    config: Config,
    numbers: Sequence[int],
    choices: Sequence[Choice],
    groups: dict[Ids, tuple[Thought, ...]],
) -> dict[int, Likelihood]:
    """Likelihoods of some choices by number; groups: thoughts by text, {} without thinking."""
    horizon = max(len(choices[n][1]) for n in numbers)
    nothing = torch.zeros(0)
    rollouts = []
    for n in numbers:
        text, continuation = choices[n]
        # Filled up to one width; no row that counts sees what follows it.
        filler = (0,) * (horizon - len(continuation))
        ids = torch.tensor([*text, *continuation, *filler])
        rollouts.append(
            Rollout(Context(n, "", ids), (len(text),), (groups.get(text, ()),), nothing, nothing)
        )
    found = {}
    for piece in microbatches(
        rollouts,
        tokens=config.parallel.tokens_per_microbatch,
        horizon=horizon,
        shares=model.shares,
    ):
        tree = plant(model, piece, horizon)
        rows_PGH = tree.think_rows_PGH if groups else tree.empty_rows_PH[:, None]
        targets = tree.continuation_PH[:, None].expand(rows_PGH.shape).flatten()
        hidden = tree.tree.hidden(model).index_select(0, rows_PGH.flatten().to(model.device))
        logp, _, top1 = model.logprob(hidden, targets.to(model.device))
        match_PGH = (top1.cpu() == targets).view(rows_PGH.shape)
        logp_PGH = logp.cpu().view(rows_PGH.shape)
        for p, rollout in enumerate(piece):
            n = rollout.context.ordinal
            length = len(choices[n][1])
            logp_G = logp_PGH[p, :, :length].sum(dim=1)
            greedy_G = match_PGH[p, :, :length].all(dim=1)
            found[n] = Likelihood(
                float(logp_G.logsumexp(dim=0)) - math.log(len(logp_G)),
                bool(greedy_G.float().mean() > 0.5),
            )
    return found


def _cut(choices: Sequence[Choice], most_tokens: int) -> list[Choice]:
    """Texts without their beginning where they are too long, by the longest of their answers."""
    longest: dict[Ids, int] = {}
    for text, continuation in choices:
        longest[text] = max(longest.get(text, 0), len(continuation))
    return [
        (text[-max(most_tokens - longest[text], 1) :], continuation)
        for text, continuation in choices
    ]
