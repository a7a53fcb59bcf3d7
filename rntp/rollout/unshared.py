"""Sampling from a model whose layers cannot branch.

The thoughts of a position have one prefix: it is read once, its cache is copied for each of them,
and they decode in lock-step. Answers come after thoughts of unlike length, so those of like length
are read and decoded together. Draws are those of `rntp.rollout.engine`: chance goes by what a
draw is for, so that like logits give like tokens.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.thought_tree import thought_branch
from rntp.model.unshared import FILLING, Ran, grouped, run_plain
from rntp.placement import Place
from rntp.rollout import Check, no_check
from rntp.rollout.finish import answered, finish
from rntp.rollout.next_token_stats import LazyNextTokenStats
from rntp.rollout.sampling import Draw, draw
from rntp.rollout.static_batch import Branches, TokenSampler
from rntp.types import Context, Rollout, Thought


class PlainDecoder:
    """Goes on from rows of tokens of one length, a token a row at a time.

    ids_BS: int64 [B, S]. copies: so many rows from a single one, which is read once.
    """

    def __init__(self, model: LanguageModel, ids_BS: Tensor, copies: int | None = None) -> None:
        assert model.plain is not None
        self._model, self._plain = model, model.plain
        self._ids = ids_BS.to(model.device)
        ran = self._read(keep=self._plain.cached)
        self._hidden, self._cache = ran.hidden, ran.cache
        if copies is not None:
            self._ids, self._hidden = self._ids.expand(copies, -1), ran.hidden.expand(copies, -1)
            if self._cache is not None:
                one = torch.zeros(copies, dtype=torch.int64, device=model.device)
                self._cache.reorder_cache(one)

    @property
    def logits(self) -> Tensor:
        """Of the next token of every row, [B, V]."""
        return self._model.logits(self._hidden)

    def feed(self, token: Tensor) -> None:
        """One token a row, int64 [B]."""
        hf, plain = self._model.hf, self._plain
        if self._cache is not None:
            ran = run_plain(hf, plain, token[:, None], cache=self._cache, keep=True)
            self._hidden, self._cache = ran.hidden[:, -1], ran.cache
        else:
            self._ids = torch.cat([self._ids, token[:, None]], dim=1)
            self._hidden = self._read(keep=False).hidden

    def _read(self, *, keep: bool) -> Ran:
        """The last hidden state of every row, [B, H], of its whole sequence."""
        hf, plain = self._model.hf, self._plain
        if plain.together or len(self._ids) == 1:
            ran = run_plain(hf, plain, self._ids, keep=keep)
            return Ran(ran.hidden[:, -1], ran.cache)
        rows = [run_plain(hf, plain, ids[None]).hidden[:, -1] for ids in self._ids]
        return Ran(torch.cat(rows))


class UnsharedEngine:
    """As `rntp.rollout.engine.InProcessEngine`, which see, without what it shares."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        thoughts: int,
        budget: int,
        answer_tokens: int = 0,
        temperature: float,
        seed: int,
        docs_per_batch: int = 8,
        purpose: str = "thought",
        draw: Draw = draw,
    ) -> None:
        self.model = model
        self.thoughts = thoughts
        self.budget = budget
        self.answer_tokens = answer_tokens
        self.docs_per_batch = docs_per_batch
        self._chance = TokenSampler(seed, purpose, temperature, draw)
        self._answer_chance = TokenSampler(seed, f"{purpose} answer", temperature, draw)

    @torch.no_grad()
    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """One rollout a context, in order; see `Engine`."""
        rollouts: list[Rollout] = []
        for first in range(0, len(contexts), self.docs_per_batch):
            batch = contexts[first : first + self.docs_per_batch]
            check()
            for context, hidden in zip(batch, self._read(batch), strict=True):
                ids = context.token_ids.to(self.model.device)
                next_token = LazyNextTokenStats(self.model, ids, hidden)
                at = place(context, next_token)
                thoughts = tuple(self._group(context, position, check) for position in at)
                rollouts.append(
                    Rollout(
                        context, at, thoughts, *next_token.at(at), policy_version=policy_version
                    )
                )
        return rollouts

    def _read(self, contexts: Sequence[Context]) -> list[Tensor]:
        """Hidden states of whole contexts, [L, H] each."""
        plain = self.model.plain
        assert plain is not None
        lengths = [len(c) for c in contexts]
        found: dict[int, Tensor] = {}
        for group in grouped(lengths, together=plain.together, most=plain.most_tokens):
            ids = torch.full((len(group), max(lengths[n] for n in group)), FILLING)
            for row, n in enumerate(group):
                ids[row, : lengths[n]] = contexts[n].token_ids
            hidden = run_plain(self.model.hf, plain, ids.to(self.model.device)).hidden
            found |= {n: hidden[row, : lengths[n]] for row, n in enumerate(group)}
        return [found[n] for n in range(len(contexts))]

    def _group(self, context: Context, position: int, check: Check) -> tuple[Thought, ...]:
        """The thoughts of a position, each with its answer."""
        prefix = context.token_ids[:position]
        start = torch.cat([prefix, torch.tensor([self.model.think_open_id])])
        members = torch.arange(self.thoughts, device=self.model.device)
        branches = self._branches(context, position, members)
        decoder = PlainDecoder(self.model, start[None], copies=self.thoughts)
        ids_GT, logprob_GT = _draw(
            decoder, branches, self._chance, self.budget, self.model.think_close_id, check
        )
        thoughts = [
            finish(ids, logprob, self.model.think_close_id)
            for ids, logprob in zip(ids_GT, logprob_GT, strict=True)
        ]
        if not self.answer_tokens:
            return tuple(thoughts)

        def length(g: int) -> int:
            return thoughts[g].num_tokens

        for _, alike in groupby(sorted(range(len(thoughts)), key=length), key=length):
            some = list(alike)
            self._answer(context, position, some, thoughts, check)
        return tuple(thoughts)

    def _answer(
        self,
        context: Context,
        position: int,
        some: list[int],
        thoughts: list[Thought],
        check: Check,
    ) -> None:
        """Answers of some thoughts, of one length, put in their place."""
        model, prefix = self.model, context.token_ids[:position]
        markers = model.think_open_id, model.think_close_id
        rows = [
            torch.cat([prefix, thought_branch(t.sampled_ids, t.closed, *markers)])
            for t in (thoughts[g] for g in some)
        ]
        branches = self._branches(context, position, torch.tensor(some, device=model.device))
        decoder = PlainDecoder(model, torch.stack(rows))
        drawn = _draw(
            decoder, branches, self._answer_chance, self.answer_tokens, model.eos_id, check
        )
        for g, ids, logprob in zip(some, *drawn, strict=True):
            thoughts[g] = answered(thoughts[g], ids, logprob, model.eos_id)

    def _branches(self, context: Context, position: int, members: Tensor) -> Branches:
        def every(number: int) -> Tensor:
            return torch.full_like(members, number)

        return Branches(
            ordinal=every(context.ordinal),
            position=every(position),
            page_position=every(position - context.shift),
            member=members,
            visible=every(position)[None],
        )


def _draw(
    decoder: PlainDecoder,
    branches: Branches,
    chance: TokenSampler,
    budget: int,
    stop_id: int | None,
    check: Check,
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probs, [B, T] on the CPU, T <= budget; what follows a stop token is to be cut.

    stop_id: the token behind which a branch's draws do not count, or None.
    """
    ids, logprobs = [], []
    ended = torch.zeros_like(branches.member, dtype=torch.bool)
    for t in range(budget):
        check()
        token, logprob = chance.next_token(decoder.logits, branches, t)
        ids.append(token)
        logprobs.append(logprob)
        ended |= token == stop_id if stop_id is not None else False
        if ended.all() or t + 1 == budget:
            break
        decoder.feed(token)
    return torch.stack(ids, dim=1).cpu(), torch.stack(logprobs, dim=1).cpu()
