"""The trainer's own weights as the sampler: nothing to synchronise, nothing to go stale.

A batch of contexts is prefilled once as one packed stream. All their branches then decode in
lock-step against that one copy of the keys and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rntp_kernels.tree_attention import DecodeAttention, PrefixRecorder
from torch import Tensor

from rntp.chance import uniform
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.rollout import Check, Place, no_check
from rntp.rollout.sampling import Draw, always, draw
from rntp.tokenizer import pause_id
from rntp.types import Context, Rollout, Thought


class InProcessEngine:
    """Samples `thoughts` thoughts of at most `budget` tokens at each position, and after each an
    answer of at most `answer_tokens`.

    slots: longest context, tokens; storage is always this wide, so that a thought does not depend
    on the contexts beside it. docs_per_batch: contexts decoded together. purpose names the stream
    of random numbers, so that evaluation and training draw apart.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        thoughts: int,
        budget: int,
        answer_tokens: int = 0,
        temperature: float,
        seed: int,
        slots: int,
        docs_per_batch: int = 8,
        purpose: str = "thought",
        draw: Draw = draw,
    ) -> None:
        self.model = model
        self.thoughts = thoughts
        self.budget = budget
        self.answer_tokens = answer_tokens
        self.temperature = temperature
        self.seed = seed
        self.slots = slots
        self.docs_per_batch = docs_per_batch
        self.purpose = purpose
        self.draw = draw

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
            prefix, entropies, nlls = self._prefill(batch)
            positions = [
                place(context, entropy, nll)
                for context, entropy, nll in zip(batch, entropies, nlls, strict=True)
            ]
            groups = self._think(batch, positions, prefix, check)
            for i, context in enumerate(batch):
                at = list(positions[i])
                rollouts.append(
                    Rollout(
                        context=context,
                        positions=positions[i],
                        thoughts=groups[i],
                        entropy=entropies[i][at],
                        nll=nlls[i][at],
                        policy_version=policy_version,
                    )
                )
        return rollouts

    def _prefill(
        self, contexts: Sequence[Context]
    ) -> tuple[PrefixRecorder, list[Tensor], list[Tensor]]:
        """Keys and values of the contexts; entropy and loss of every next-token prediction."""
        device, lengths = self.model.device, tuple(len(c) for c in contexts)
        ids = torch.cat([c.token_ids for c in contexts]).to(device)
        recorder = PrefixRecorder(lengths, self.slots, device)
        position_ids = torch.cat([torch.arange(n) for n in lengths]).to(device)
        hidden = self.model.hidden(ids, position_ids, recorder)
        # Row i predicts token i + 1; what it says of the next document's first token is dropped.
        logprob, entropy, _ = self.model.logprob(hidden, ids.roll(-1))
        entropies, nlls = [], []
        for row_entropy, row_logprob in zip(
            entropy.split(lengths), logprob.split(lengths), strict=True
        ):
            nothing = row_entropy.new_zeros(1)  # no row predicts a context's first token
            entropies.append(torch.cat([nothing, row_entropy[:-1]]).cpu())
            nlls.append(torch.cat([nothing, -row_logprob[:-1]]).cpu())
        return recorder, entropies, nlls

    def _think(
        self,
        contexts: Sequence[Context],
        positions: Sequence[tuple[int, ...]],
        prefix: PrefixRecorder,
        check: Check,
    ) -> list[tuple[tuple[Thought, ...], ...]]:
        """Decode D · K · G branches in lock-step: [D][K][G] thoughts."""
        branches = self._branches(contexts, positions, prefix)
        ids_NT, logprob_NT = self._draw_thoughts(branches, check)
        thoughts = [
            _finish(ids, logprob, self.model.think_close_id)
            for ids, logprob in zip(ids_NT, logprob_NT, strict=True)
        ]
        if self.answer_tokens and thoughts:
            ids_NA, logprob_NA = self._draw_answers(branches, thoughts, check)
            thoughts = [
                _answered(thought, ids, logprob, self.model.eos_id)
                for thought, ids, logprob in zip(thoughts, ids_NA, logprob_NA, strict=True)
            ]
        groups = [
            tuple(thoughts[i : i + self.thoughts]) for i in range(0, len(thoughts), self.thoughts)
        ]
        per_doc = len(positions[0])
        return [tuple(groups[i : i + per_doc]) for i in range(0, len(groups), per_doc)]

    def _branches(
        self,
        contexts: Sequence[Context],
        positions: Sequence[tuple[int, ...]],
        prefix: PrefixRecorder,
    ) -> "_Branches":
        device = self.model.device
        position_DK = torch.tensor(positions, device=device)
        visible_DB = position_DK.repeat_interleave(self.thoughts, dim=1)
        ordinal = torch.tensor([c.ordinal for c in contexts], device=device)
        inserted = torch.tensor([c.inserted for c in contexts], device=device)
        # The open marker, the thought, the close marker, and all but the last token of the answer.
        budget = self.budget + (self.answer_tokens + 1 if self.answer_tokens else 0)
        return _Branches(
            ordinal=ordinal.repeat_interleave(visible_DB.shape[1]),
            position=visible_DB.flatten(),
            page_position=(visible_DB - inserted[:, None]).flatten(),
            member=torch.arange(self.thoughts, device=device).repeat(position_DK.numel()),
            attention=DecodeAttention(prefix, visible_DB, budget),
            shape=visible_DB.shape,
        )

    def _draw_thoughts(self, branches: "_Branches", check: Check) -> tuple[Tensor, Tensor]:
        """Tokens and log-probs, [N, T], on the CPU; what follows a close marker is to be cut."""
        model, position = self.model, branches.position
        token = torch.full_like(position, model.think_open_id)
        closed = torch.zeros_like(position, dtype=torch.bool)
        drawn, logprobs = [], []
        for t in range(self.budget):
            check()
            hidden = model.hidden(token, position + t, branches.attention)
            branches.attention.advance()
            token, logprob = self._draw(hidden, branches, self.purpose, t)
            drawn.append(token)
            logprobs.append(logprob)
            closed |= token == model.think_close_id
            if closed.all():
                break
        return torch.stack(drawn, 1).cpu(), torch.stack(logprobs, 1).cpu()

    def _draw_answers(
        self, branches: "_Branches", thoughts: Sequence[Thought], check: Check
    ) -> tuple[Tensor, Tensor]:
        """The same for what comes after the close marker, [N, A].

        A thought that closed itself has decoded up to its last token before the marker, and the
        lock-step went on without it; one that did not has never been fed its last token.
        """
        model, position, attention = self.model, branches.position, branches.attention
        forced = torch.tensor([not t.closed for t in thoughts], device=model.device)
        last = torch.tensor([int(t.sampled_ids[-1]) for t in thoughts], device=model.device)
        content = torch.tensor([t.num_tokens for t in thoughts], device=model.device)
        if forced.any():
            # For the others this is the close marker, which the next call writes once more.
            attention.rewind((content + 1 - forced.long()).view(branches.shape))
            model.hidden(last, position + content + 1 - forced.long(), attention)
        length = content + 1  # of the branch before its close marker
        attention.rewind(length.view(branches.shape))
        token = torch.full_like(position, model.think_close_id)
        ended = torch.zeros_like(position, dtype=torch.bool)
        drawn, logprobs = [], []
        for t in range(self.answer_tokens):
            check()
            hidden = model.hidden(token, position + length + t, attention)
            attention.advance()
            token, logprob = self._draw(hidden, branches, f"{self.purpose} answer", t)
            drawn.append(token)
            logprobs.append(logprob)
            if model.eos_id is not None:
                ended |= token == model.eos_id
            if ended.all():
                break
        return torch.stack(drawn, 1).cpu(), torch.stack(logprobs, 1).cpu()

    def _draw(
        self, hidden: Tensor, branches: "_Branches", purpose: str, token: int
    ) -> tuple[Tensor, Tensor]:
        noise = uniform(
            self.seed, purpose, branches.ordinal, branches.page_position, branches.member, token
        )
        return self.draw(hidden @ self.model.head.T, noise, self.temperature)


@dataclass(frozen=True)
class _Branches:
    """N = D · K · G branches that decode together: of which context, where, and which thought.

    ordinal, position, page_position, member: int64 [N]; page_position is what chance goes by.
    shape: (D, K · G).
    """

    ordinal: Tensor
    position: Tensor
    page_position: Tensor
    member: Tensor
    attention: DecodeAttention
    shape: torch.Size


class ReadingEngine:
    """Thinks nowhere: contexts as they are, for training on the next-token loss alone."""

    docs_per_batch = 1

    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """One rollout without positions for each context; see `Engine`."""
        return [unthought(context, policy_version) for context in contexts]


def unthought(context: Context, policy_version: int = 0) -> Rollout:
    """A context without positions."""
    nothing = torch.zeros(0)
    return Rollout(context, (), (), nothing, nothing, policy_version)


def open_engine(
    model: LanguageModel,
    config: Config,
    *,
    thoughts: int,
    answer_tokens: int = 0,
    purpose: str = "thought",
) -> InProcessEngine | ReadingEngine:
    """The engine that a config asks for, sampling `thoughts` thoughts at each position, each with
    an answer of at most `answer_tokens` (0: with none).
    """
    if thoughts == 0:
        return ReadingEngine()
    engines = {"inprocess": InProcessEngine}
    return engines[config.rollout.engine](
        model,
        thoughts=thoughts,
        budget=config.thought.thought_tokens,
        answer_tokens=answer_tokens,
        temperature=config.thought.temperature,
        seed=config.run.seed,
        slots=config.longest_context,
        docs_per_batch=config.rollout.docs_per_batch,
        purpose=purpose,
        draw=always(pause_id(model.tokenizer)) if config.thought.source == "pause" else draw,
    )


def _finish(ids: Tensor, logprobs: Tensor, close_id: int) -> Thought:
    """Cut a branch after its close marker, if it drew one."""
    closes = (ids == close_id).nonzero()
    closed = len(closes) > 0
    length = int(closes[0]) + 1 if closed else len(ids)
    return Thought(ids[:length].clone(), logprobs[:length].float().clone(), closed)


def _answered(thought: Thought, ids: Tensor, logprobs: Tensor, eos_id: int | None) -> Thought:
    """The thought with its answer, cut after the end token, if it drew one."""
    ends = (ids == eos_id).nonzero() if eos_id is not None else ids[:0]
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    return replace(
        thought,
        answer_ids=ids[:length].clone(),
        answer_logprobs=logprobs[:length].float().clone(),
        answer_ended=len(ends) > 0,
    )
