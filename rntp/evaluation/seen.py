"""Pages read with their thoughts in view: each thought, and every token, sees the earlier ones.

Elsewhere a thought is forgotten when its horizon is over. Here it stands in the page from there on,
as with `placement.interleaved`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rntp.config import Config
from rntp.evaluation.everywhere import PURPOSE
from rntp.model import LanguageModel
from rntp.model.thought_tree import TokenTree
from rntp.rollout import Check, no_check
from rntp.rollout.engine import open_engine
from rntp.rollout.interleaved import InterleavedEngine
from rntp.rollout.tool_calls import serving
from rntp.types import Context, NextTokenStats


@dataclass(frozen=True)
class SeenPage:
    """A page with its thoughts in it, on the CPU.

    nll_L: nats of each token of the page, float64; the first has none and is 0. thoughts: how many.
    drawn: tokens of them. inserted: tokens that stand in the page besides its own.
    """

    nll_L: Tensor
    thoughts: int
    drawn: int
    inserted: int


@torch.no_grad()
def read_with_thoughts(
    model: LanguageModel,
    contexts: Sequence[Context],
    places: Sequence[Sequence[int]],
    config: Config,
    *,
    check: Check = no_check,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[SeenPage]:
    """Think at some places of each page, from left to right, and leave the thoughts where they are.

    places: ascending, of the page. The first thought of a page is that of
    `rntp.evaluation.everywhere`; later ones are drawn with the same chance.
    """
    found = []
    for number, (context, at) in enumerate(zip(contexts, places, strict=True)):
        progress("pages with thoughts seen", number, len(contexts))
        found.append(_read(model, context, tuple(at), config, check))
    progress("pages with thoughts seen", len(contexts), len(contexts))
    return found


def _read(
    model: LanguageModel,
    context: Context,
    at: tuple[int, ...],
    config: Config,
    check: Check,
) -> SeenPage:
    def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        return at

    whole, drawn = context, 0
    if at:
        most = config.thought.thought_tokens + config.thought.tools.most_given + 2
        one = open_engine(
            model, config, thoughts=1, purpose=PURPOSE, slots=len(context) + most * len(at)
        )
        with serving(one, model, config):
            engine = InterleavedEngine(one, model, config.run.seed)
            rollouts = engine.sample([context], place, check)
        drawn = sum(rollout.thoughts[0][0].num_tokens for rollout in rollouts)
        whole = engine.with_a_thought(rollouts[-1])
    ids = whole.token_ids
    hidden = TokenTree.build([(ids, -1, 0)]).hidden(model)
    logp, _, _ = model.logprob(hidden[:-1], ids[1:].to(hidden.device))
    nll = torch.cat([torch.zeros(1), -logp.cpu()]).double()
    return SeenPage(nll[_own(whole)], len(at), drawn, whole.inserted)


def _own(context: Context) -> Tensor:
    """bool: which of a context's tokens are the page's."""
    own, before = torch.ones(len(context.token_ids), dtype=torch.bool), 0
    for thought in context.seen:
        first = thought.position + before
        own[first : first + len(thought.token_ids)] = False
        before += len(thought.token_ids)
    return own
