"""Thoughts, and then answers, of branches that decode together."""

from collections.abc import Sequence

import torch
from rntp_kernels.tree_attention import DecodeAttention, PrefixRecorder
from torch import Tensor

from rntp.model import LanguageModel
from rntp.rollout import Check
from rntp.rollout.calling_batch import CallingBatch
from rntp.rollout.compacting_batch import CompactingBatch
from rntp.rollout.static_batch import Branches, StaticBatch, TokenSampler
from rntp.rollout.tool_calls import ToolCalls
from rntp.types import Context, Thought


class Decoder:
    """Draws a thought of at most `budget` tokens for every branch, and then an answer of at most
    `answer_tokens`.

    chance: of the thoughts; answers draw from a stream of their own. fixed: in fixed shapes; then
    the branches' tensors and the prefix's storage are the decoder's from now on, and `restart` may
    follow. given: most tokens that tools add to a thought.
    """

    def __init__(
        self,
        model: LanguageModel,
        branches: Branches,
        prefix: PrefixRecorder,
        chance: TokenSampler,
        *,
        budget: int,
        answer_tokens: int,
        fixed: bool,
        given: int = 0,
    ) -> None:
        self._model = model
        self._branches = branches
        self._chance = chance
        self._answer_chance = TokenSampler(
            chance.seed, f"{chance.purpose} answer", chance.temperature, chance.draw
        )
        self._budget = budget
        self._answer_tokens = answer_tokens
        # The open marker, the thought, the close marker, and all but the last token of the answer.
        # Branches that have ended, or wait for tools, are fed behind their end beside the others.
        beyond = answer_tokens + 1 if answer_tokens else int(given > 0)
        storage = budget + given + beyond
        self._attention = DecodeAttention(prefix, branches.visible, storage, fixed=fixed)
        self._fixed = fixed
        if fixed:
            self._think = self._lock_step(self._chance, budget, model.think_close_id)
            self._answer = self._lock_step(self._answer_chance, answer_tokens, model.eos_id)

    def restart(self, branches: Branches, prefix: PrefixRecorder) -> None:
        """Begin again with as many other branches, of other documents, in the same storage."""
        self._branches.become(branches)
        self._attention.restart(prefix, branches.visible)

    def thoughts(self, check: Check) -> tuple[Tensor, Tensor]:
        """Tokens and log-probs, [N, T], on the CPU; what follows a close marker is to be cut."""
        model, position = self._model, self._branches.position
        if self._fixed:
            return self._think.run(model.think_open_id, position, check)
        return self._draw_until(
            model.think_open_id,
            position,
            self._chance,
            self._budget,
            model.think_close_id,
            check,
        )

    def calling_thoughts(
        self, tools: ToolCalls, contexts: Sequence[Context], check: Check
    ) -> list[Thought]:
        """The same for thoughts that call tools, ready-made. contexts: of the D documents."""
        loop = CallingBatch(
            self._model,
            self._branches,
            self._attention,
            self._chance,
            tools,
            goes_on=self._answer_tokens > 0,
        )
        return loop.run(contexts, self._budget, check)

    def answers(self, thoughts: Sequence[Thought], check: Check) -> tuple[Tensor, Tensor]:
        """The same for what comes after the close marker, [N, A].

        A thought that closed itself has decoded up to its last token before the marker, and the
        lock-step went on without it; one that did not has never been fed its last token.
        """
        model, position, attention = self._model, self._branches.position, self._attention
        shape = self._branches.visible.shape
        forced = torch.tensor([not t.closed for t in thoughts], device=model.device)
        last = torch.tensor([int(t.sampled_ids[-1]) for t in thoughts], device=model.device)
        content = torch.tensor([len(t.content) for t in thoughts], device=model.device)
        if forced.any():
            # For the others this is the close marker, which the next call writes once more.
            attention.rewind((content + 1 - forced.long()).view(shape))
            model.hidden(last, position + content + 1 - forced.long(), attention)
        length = content + 1  # of the branch before its close marker
        attention.rewind(length.view(shape))
        if self._fixed:
            return self._answer.run(model.think_close_id, position + length, check)
        return self._draw_until(
            model.think_close_id,
            position + length,
            self._answer_chance,
            self._answer_tokens,
            model.eos_id,
            check,
        )

    def _draw_until(
        self,
        token_id: int,
        start: Tensor,
        chance: TokenSampler,
        budget: int,
        stop_id: int | None,
        check: Check,
    ) -> tuple[Tensor, Tensor]:
        loop = CompactingBatch(self._model, self._branches, self._attention, chance, stop_id)
        return loop.run(token_id, start, budget, check)

    def _lock_step(self, chance: TokenSampler, budget: int, stop_id: int | None) -> StaticBatch:
        return StaticBatch(
            self._model, self._branches, self._attention, chance, budget=budget, stop_id=stop_id
        )
