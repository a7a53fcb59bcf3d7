"""The trainer's own weights as the sampler: nothing to synchronise, nothing to go stale.

A batch of contexts is prefilled once as one packed stream. All their branches then decode in
lock-step against that one copy of the keys and values.
"""

from collections.abc import Callable, Sequence

import torch
from rntp_kernels.tree_attention import DecodeAttention, PrefixRecorder
from torch import Tensor

from rntp.chance import uniform
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.rollout import Check, Place, no_check
from rntp.rollout.sampling import draw
from rntp.types import Context, Rollout, Thought

Draw = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class InProcessEngine:
    """Samples `thoughts` thoughts of at most `budget` tokens at each position.

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
        device, model = self.model.device, self.model
        position_DK = torch.tensor(positions, device=device)
        visible_DB = position_DK.repeat_interleave(self.thoughts, dim=1)
        position = visible_DB.flatten()
        ordinal = torch.tensor([c.ordinal for c in contexts], device=device)
        ordinal = ordinal.repeat_interleave(visible_DB.shape[1])
        member = torch.arange(self.thoughts, device=device).repeat(position_DK.numel())
        attention = DecodeAttention(prefix, visible_DB, self.budget)

        token = torch.full_like(position, model.think_open_id)
        closed = torch.zeros_like(position, dtype=torch.bool)
        drawn, logprobs = [], []
        for t in range(self.budget):
            check()
            hidden = model.hidden(token, position + t, attention)
            attention.advance()
            noise = uniform(self.seed, self.purpose, ordinal, position, member, t)
            token, logprob = self.draw(hidden @ model.head.T, noise, self.temperature)
            drawn.append(token)
            logprobs.append(logprob)
            closed |= token == model.think_close_id
            if closed.all():
                break
        ids_NT, logprob_NT = torch.stack(drawn, 1).cpu(), torch.stack(logprobs, 1).cpu()
        thoughts = [
            _finish(ids, logprob, model.think_close_id)
            for ids, logprob in zip(ids_NT, logprob_NT, strict=True)
        ]
        groups = [
            tuple(thoughts[i : i + self.thoughts]) for i in range(0, len(thoughts), self.thoughts)
        ]
        per_doc = position_DK.shape[1]
        return [tuple(groups[i : i + per_doc]) for i in range(0, len(groups), per_doc)]


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
    model: LanguageModel, config: Config, *, thoughts: int, purpose: str = "thought"
) -> InProcessEngine | ReadingEngine:
    """The engine that a config asks for, sampling `thoughts` thoughts at each position."""
    if thoughts == 0:
        return ReadingEngine()
    engines = {"inprocess": InProcessEngine}
    return engines[config.rollout.engine](
        model,
        thoughts=thoughts,
        budget=config.thought.thought_tokens,
        temperature=config.thought.temperature,
        seed=config.run.seed,
        slots=config.data.context_tokens,
        docs_per_batch=config.rollout.docs_per_batch,
        purpose=purpose,
    )


def _finish(ids: Tensor, logprobs: Tensor, close_id: int) -> Thought:
    """Cut a branch after its close marker, if it drew one."""
    closes = (ids == close_id).nonzero()
    closed = len(closes) > 0
    length = int(closes[0]) + 1 if closed else len(ids)
    return Thought(ids[:length].clone(), logprobs[:length].float().clone(), closed)
