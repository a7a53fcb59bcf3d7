"""How likely given continuations are after a text: at once, and after thoughts at its end.

It knows nothing of the harness. Continuations of the same text are judged after the same thoughts,
so that the choices of a question are compared under one train of thought.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from rntp.config import Config
from rntp.evaluation.tasks.room import Cuts, room_for_text
from rntp.evaluation.tasks.thinking import Ids, thoughts_after
from rntp.model import LanguageModel
from rntp.model.microbatches import microbatches
from rntp.objective.forward import build_tree
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
    model: LanguageModel,
    config: Config,
    choices: Sequence[Choice],
    *,
    thoughts: int,
    cuts: Cuts | None = None,
) -> list[Likelihood]:
    """One for each choice. thoughts: sampled at the end of each text; 0 is none.

    With thoughts the probability is the mean over them, (1/K) Σ p(continuation | text, thought k),
    and greedy holds if it does after more than half of them. Texts longer than the model can see
    lose their beginning, and `cuts` counts them. Raises ConfigError where nothing would be left.
    """
    cut = _cut(model, config, choices, think=thoughts > 0, cuts=cuts or Cuts())
    texts = [text for text, _ in cut]
    groups = thoughts_after(model, config, texts, thoughts) if thoughts else {}
    found: dict[int, Likelihood] = {}

    def length(n: int) -> int:
        return len(cut[n][1])

    for horizon, members in groupby(sorted(range(len(cut)), key=length), key=length):
        alike = list(members)
        for first in range(0, len(alike), config.rollout.docs_per_batch):
            some = alike[first : first + config.rollout.docs_per_batch]
            found |= _judge(model, config, some, cut, groups, horizon)
    return [found[n] for n in range(len(cut))]


def _judge(
    model: LanguageModel,
    config: Config,
    numbers: Sequence[int],
    choices: Sequence[Choice],
    groups: dict[Ids, tuple[Thought, ...]],
    horizon: int,
) -> dict[int, Likelihood]:
    """Likelihoods of some choices by number, all of `horizon` tokens. groups: thoughts by text, {}
    without thinking."""
    nothing = torch.zeros(0)
    rollouts = []
    for n in numbers:
        text, continuation = choices[n]
        ids = torch.tensor([*text, *continuation])
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
        tree = build_tree(model, piece, horizon)
        rows_PGH = tree.think_rows_PGH if groups else tree.no_think_rows_PH[:, None]
        targets = tree.continuation_PH[:, None].expand(rows_PGH.shape).flatten()
        hidden = tree.tree.hidden(model).index_select(0, rows_PGH.flatten().to(model.device))
        logp, _, top1 = model.logprob(hidden, targets.to(model.device))
        match_PGH = (top1.cpu() == targets).view(rows_PGH.shape)
        logp_PGH = logp.cpu().view(rows_PGH.shape)
        for p, rollout in enumerate(piece):
            n = rollout.context.ordinal
            logp_G, greedy_G = logp_PGH[p].sum(dim=1), match_PGH[p].all(dim=1)
            found[n] = Likelihood(
                float(logp_G.logsumexp(dim=0)) - math.log(len(logp_G)),
                bool(greedy_G.float().mean() > 0.5),
            )
    return found


def _cut(
    model: LanguageModel, config: Config, choices: Sequence[Choice], *, think: bool, cuts: Cuts
) -> list[Choice]:
    """Texts without their beginning where they are too long, by the longest of their answers."""
    longest: dict[Ids, int] = {}
    for text, continuation in choices:
        longest[text] = max(longest.get(text, 0), len(continuation))
    rooms = {text: room_for_text(model, config, n, think=think) for text, n in longest.items()}
    return [(cuts.shorten(text, rooms[text]), continuation) for text, continuation in choices]
