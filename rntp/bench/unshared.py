"""The usual loop, written with transformers: every thought is a sequence of its own.

Sampling with `generate`, a scoring forward for the rewards, a training forward and backward. It has
what a careful engineer gives it: library attention, left padding, so that the head only sees the
last tokens (`logits_to_keep`), and pieces that fit the memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rntp.bench.job import Job
from rntp.model import ATTENTION
from rntp.model import own_attention as usual_attention
from rntp.model.thought_tree import memory_branch
from rntp.objective.advantages import leave_one_out
from rntp.objective.quantities import loss_reads
from rntp.types import Rollout


@dataclass(frozen=True)
class Unshared:
    """The job of `Job` in the usual way. rows: sequences in one forward."""

    job: Job
    rows: int = 8

    def sample(self) -> Tensor:
        """Thoughts of exactly the budget's length, ids [N, T], with transformers' `generate`."""
        job, sizes = self.job, self.job.sizes
        model = job.model
        prompts = [
            torch.cat([context.token_ids[:position], torch.tensor([model.think_open_id])])
            for context in job.contexts
            for position in job.positions
        ]
        ids, mask = _left_padded(prompts, model.device)
        with own_attention(job), torch.no_grad():
            found = model.hf.generate(  # type: ignore[operator]  # mixed in by transformers
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=sizes.thoughts,
                min_new_tokens=sizes.budget,
                max_new_tokens=sizes.budget,
                pad_token_id=0,
            )
        assert isinstance(found, Tensor)
        return found[:, ids.shape[1] :]

    def backward(self, rollouts: Sequence[Rollout]) -> float:
        """A scoring pass without gradients, then training passes; the loss in nats.

        Where the loss has no term on continuations, training passes end with the thoughts.
        """
        job, horizon, weight = self.job, self.job.sizes.horizon, self.job.continuation_weight
        sequences = _sequences(rollouts, job)
        reads = loss_reads(job.config)
        apart = reads.window is not None  # a thought is one sequence, and its reading another
        with own_attention(job):
            readings = _readings(rollouts, job) if apart else sequences
            reward = self.continuation_logp(readings).sum(dim=1)
            advantage = leave_one_out(reward.view(-1, job.sizes.thoughts)).flatten()
            drawn = sum(s.drawn for s in sequences)
            total, first = 0.0, 0
            if apart and weight:
                total += self._learn_readings(readings, _bare(rollouts, job))
            behind = weight and not apart
            trained = sequences if behind else [s.thought for s in sequences]
            for piece in self._pieces(trained):
                thought_logp, continuation_logp = self._logp(piece)
                own = advantage[first : first + len(piece)]
                first += len(piece)
                policy = sum(-(a * logp.sum()) for a, logp in zip(own, thought_logp, strict=True))
                loss = policy / drawn
                if behind:
                    reading = -continuation_logp.sum() / (len(sequences) * horizon)
                    loss = loss + weight * reading
                assert isinstance(loss, Tensor)
                loss.backward()
                total += float(loss.detach())
        return total

    def _learn_readings(self, *kinds: list["PlainSequence"]) -> float:
        """Training passes over readings with a thought and without, each with its own mean."""
        horizon, weight, total = self.job.sizes.horizon, self.job.continuation_weight, 0.0
        for readings in kinds:
            for piece in self._pieces(readings):
                _, continuation_logp = self._logp(piece)
                loss = -weight * continuation_logp.sum() / (len(readings) * horizon)
                loss.backward()
                total += float(loss.detach())
        return total

    @torch.no_grad()
    def thought_logp(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Log-probs of all sampled tokens under the scoring forward, float32 nats [drawn]."""
        sequences = _sequences(rollouts, self.job)
        with own_attention(self.job):
            return torch.cat([x for p in self._pieces(sequences) for x in self._logp(p)[0]])

    @torch.no_grad()
    def continuation_logp(self, sequences: list["PlainSequence"]) -> Tensor:
        """The scoring forward: log-probs of the continuations, float32 nats [n, H]."""
        return torch.cat([self._logp(piece)[1] for piece in self._pieces(sequences)])

    def _pieces(self, sequences: list["PlainSequence"]) -> Iterator[list["PlainSequence"]]:
        for first in range(0, len(sequences), self.rows):
            yield sequences[first : first + self.rows]

    def _logp(self, piece: list["PlainSequence"]) -> tuple[list[Tensor], Tensor]:
        """Log-probs of each thought's sampled tokens, and of the continuations, [n, H]."""
        horizon = self.job.sizes.horizon
        ids, mask = _left_padded([s.ids for s in piece], self.job.model.device)
        # The row before a thought's first token predicts it.
        keep = max(len(s.ids) - s.prefix for s in piece) + 1
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        logits = self.job.model.hf(
            ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep, use_cache=False
        ).logits
        known = logits[:, :-1, : self.job.model.vocabulary]  # the others are nobody's tokens
        logp = torch.log_softmax(known.float(), dim=-1)
        target_logp = logp.gather(2, ids[:, -keep + 1 :, None])[..., 0]
        ends = target_logp.shape[1]
        thoughts = []
        for row, s in zip(target_logp, piece, strict=True):
            begin = ends - (len(s.ids) - s.prefix)
            thoughts.append(row[begin : begin + s.drawn])
        return thoughts, target_logp[:, ends - horizon :]


@dataclass(frozen=True)
class PlainSequence:
    """prefix: tokens before the thought's first, the open marker among them. drawn: sampled."""

    ids: Tensor
    prefix: int
    drawn: int

    @property
    def thought(self) -> "PlainSequence":
        """The same without what follows the sampled tokens."""
        return replace(self, ids=self.ids[: self.prefix + self.drawn])


def _sequences(rollouts: Sequence[Rollout], job: Job) -> list[PlainSequence]:
    opened = torch.tensor([job.model.think_open_id])
    closed = torch.tensor([job.model.think_close_id])
    found = []
    for rollout in rollouts:
        page = rollout.context.token_ids
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            continuation = page[position : position + job.sizes.horizon]
            for thought in group:
                close = closed[:0] if thought.closed else closed
                parts = [page[:position], opened, thought.sampled_ids, close, continuation]
                found.append(
                    PlainSequence(torch.cat(parts), position + 1, len(thought.sampled_ids))
                )
    return found


def _readings(rollouts: Sequence[Rollout], job: Job) -> list[PlainSequence]:
    """Start token, thought, window, continuation; of every thought."""
    start, horizon = torch.tensor([job.model.start_id]), job.sizes.horizon
    markers = job.model.think_open_id, job.model.think_close_id
    found = []
    for rollout in rollouts:
        page = rollout.context.token_ids
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            behind = page[position - job.sizes.window : position + horizon]
            for thought in group:
                memory = memory_branch(thought, *markers)
                ids = torch.cat([start, memory, behind])
                found.append(PlainSequence(ids, len(ids) - horizon, 0))
    return found


def _bare(rollouts: Sequence[Rollout], job: Job) -> list[PlainSequence]:
    """The same without a thought, of every position."""
    start, horizon = torch.tensor([job.model.start_id]), job.sizes.horizon
    pages = [(r.context.token_ids, position) for r in rollouts for position in r.positions]
    sequences = [torch.cat([start, ids[p - job.sizes.window : p + horizon]]) for ids, p in pages]
    return [PlainSequence(ids, len(ids) - horizon, 0) for ids in sequences]


def _left_padded(sequences: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [n, longest]; padded with token 0."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = sequence
        mask[row, longest - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


@contextmanager
def own_attention(job: Job) -> Iterator[None]:
    """The model computes ordinary sequences with torch's attention inside the block."""
    job.model.hf.set_attn_implementation(usual_attention(job.model.hf))
    try:
        yield
    finally:
        job.model.hf.set_attn_implementation(ATTENTION)
