"""Sampling from a model whose layers cannot branch.

The thoughts of a position have one prefix: it is read once, its cache is copied for each of them,
and they decode in lock-step. Answers come after thoughts of unlike length, so those of like length
are read and decoded together; so are thoughts that go on behind what a tool gave, which wait until
no other thought of the batch has anything left to draw. Draws are those of `rntp.rollout.engine`:
chance goes by what a draw is for, so that like logits give like tokens.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby, islice

import torch
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.thought_tree import thought_branch
from rntp.model.unshared import FILLING, Ran, grouped, run_plain
from rntp.placement import Place
from rntp.rollout import Check, no_check
from rntp.rollout.calling_branch import CallingBranch, read_results
from rntp.rollout.finish import answered, finish
from rntp.rollout.next_token_stats import LazyNextTokenStats
from rntp.rollout.sampling import Draw, draw
from rntp.rollout.static_batch import Branches, TokenSampler
from rntp.rollout.tool_calls import ToolCalls
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
        or_none: bool = False,
    ) -> None:
        self.model = model
        self.thoughts = thoughts
        self.budget = budget
        self.answer_tokens = answer_tokens
        self.docs_per_batch = docs_per_batch
        # Who takes the calls of thoughts; see `rntp.rollout.tool_calls.serving`.
        self.tools: ToolCalls | None = None
        none_id = model.think_close_id if or_none else None
        self._chance = TokenSampler(seed, purpose, temperature, draw, none_id)
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
            outlooks = [
                LazyNextTokenStats(self.model, context.token_ids.to(self.model.device), hidden)
                for context, hidden in zip(batch, self._read(batch), strict=True)
            ]
            positions = [
                place(context, outlook) for context, outlook in zip(batch, outlooks, strict=True)
            ]
            groups = self._think(batch, positions, check)
            rollouts += [
                Rollout(context, at, thoughts, *outlook.at(at), policy_version=policy_version)
                for context, at, thoughts, outlook in zip(
                    batch, positions, groups, outlooks, strict=True
                )
            ]
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

    def _think(
        self, contexts: Sequence[Context], positions: Sequence[tuple[int, ...]], check: Check
    ) -> list[tuple[tuple[Thought, ...], ...]]:
        """The rows of every context, each thought with its answer: [D][K][G]."""
        counts = [
            (c, *place)
            for c, at in zip(contexts, positions, strict=True)
            for place in Counter(at).items()
        ]
        places = [(context, position) for context, position, _ in counts]
        copies = [rows * self.thoughts for *_, rows in counts]
        if self.tools is None:
            groups = [
                self._group(*place, n, check) for place, n in zip(places, copies, strict=True)
            ]
        else:
            groups = self._calling_groups(self.tools, places, copies, check)
        if self.answer_tokens:
            for (context, position), group in zip(places, groups, strict=True):
                lengths = [len(thought.sampled_ids) + (not thought.closed) for thought in group]
                for alike in _of_like_length(lengths):
                    self._answer(context, position, alike, group, check)
        found = (thought for group in groups for thought in group)
        return [tuple(tuple(islice(found, self.thoughts)) for _ in at) for at in positions]

    def _group(self, context: Context, position: int, copies: int, check: Check) -> list[Thought]:
        """The thoughts of a position, so many."""
        members = torch.arange(copies, device=self.model.device)
        branches = self._branches(context, position, members)
        decoder = PlainDecoder(self.model, self._start(context, position), copies=copies)
        ids_GT, logprob_GT = _draw(
            decoder, branches, self._chance, self.budget, self.model.think_close_id, check
        )
        return [
            finish(ids, logprob, self.model.think_close_id)
            for ids, logprob in zip(ids_GT, logprob_GT, strict=True)
        ]

    def _start(self, context: Context, position: int) -> Tensor:
        """What all thoughts of a position have before them, int64 [1, S]."""
        opening = torch.tensor([self.model.think_open_id])
        return torch.cat([context.token_ids[:position], opening])[None]

    def _calling_groups(
        self,
        tools: ToolCalls,
        places: Sequence[tuple[Context, int]],
        copies: Sequence[int],
        check: Check,
    ) -> list[list[Thought]]:
        """The thoughts of all positions, in rounds: each decodes until it has ended or calls. Calls
        run while others decode. copies: thoughts of each position."""
        groups = [
            [CallingBranch.begin(*place, tools) for _ in range(n)]
            for place, n in zip(places, copies, strict=True)
        ]
        every = [branch for group in groups for branch in group]
        while any(not branch.ended for branch in every):
            for group in groups:
                going = [g for g, branch in enumerate(group) if branch.decodes]
                for alike in _of_like_length([len(group[g].ids) for g in going]):
                    self._go_on(tools, group, [going[n] for n in alike], check)
            read_results(every, tools, check)
        return [[branch.thought() for branch in group] for group in groups]

    def _go_on(
        self, tools: ToolCalls, group: Sequence[CallingBranch], some: Sequence[int], check: Check
    ) -> None:
        """Decode some branches of a position, of one length, until none has anything to draw."""
        going = [group[g] for g in some]
        context, position = going[0].context, going[0].position
        start = self._start(context, position)
        if going[0].ids:
            own = torch.tensor([branch.ids for branch in going])
            decoder = PlainDecoder(self.model, torch.cat([start.expand(len(own), -1), own], dim=1))
        else:
            decoder = PlainDecoder(self.model, start, copies=len(going))
        device = self.model.device
        branches = self._branches(context, position, torch.tensor(some, device=device))
        # A branch that has stopped is fed on beside the others; what comes of that is dropped.
        number = torch.tensor([branch.drawn for branch in going], device=device)
        while True:
            check()
            token, logprob = self._chance.next_token(decoder.logits, branches, number)
            for branch, id_, value in zip(going, token.tolist(), logprob.tolist(), strict=True):
                if branch.decodes:
                    branch.draw(id_, value, tools, self.budget)
            if not any(branch.decodes for branch in going):
                return
            decoder.feed(token)
            number = number + 1

    def _answer(
        self,
        context: Context,
        position: int,
        some: Sequence[int],
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


def _of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Which of them have the same length, shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [list(alike) for _, alike in groupby(order, key=lengths.__getitem__)]


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
