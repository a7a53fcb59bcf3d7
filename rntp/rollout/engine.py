"""The trainer's own weights as the sampler: nothing to synchronise, nothing to go stale.

A batch of contexts is prefilled once as one packed stream. All their branches then decode in
lock-step against that one copy of the keys and values.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from rntp_kernels.tree_attention import PrefixRecorder

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.packed_weights import packed_weights, packing_pays
from rntp.model.sharding import is_sharded
from rntp.model.tokenizer import pause_id
from rntp.placement import Place
from rntp.placement.repeats import members
from rntp.rollout import Check, no_check
from rntp.rollout.decoder import Decoder
from rntp.rollout.finish import answered, finish
from rntp.rollout.next_token_stats import LazyNextTokenStats
from rntp.rollout.sampling import Draw, always, draw
from rntp.rollout.static_batch import Branches, TokenSampler
from rntp.rollout.tool_calls import ToolCalls
from rntp.rollout.unshared import UnsharedEngine
from rntp.types import Context, Rollout, Thought

# Numbers of branches whose storage and graph are kept: of a full batch and of a step's last one.
KEPT_DECODERS = 2


class InProcessEngine:
    """Samples `thoughts` thoughts of at most `budget` tokens at each position, and after each an
    answer of at most `answer_tokens`.

    slots: longest context, tokens; storage is always this wide, so that a thought does not depend
    on the contexts beside it. docs_per_batch: contexts decoded together. purpose names the stream
    of random numbers, so that evaluation and training draw apart. or_none: the first thought of
    every group is closed at once. fixed_shapes: see `rntp.rollout.static_batch`; by default on
    CUDA, unless the weights are sharded. pack: see `rntp.model.packed_weights`; by default where it
    pays.
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
        or_none: bool = False,
        fixed_shapes: bool | None = None,
        pack: bool | None = None,
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
        self.none_id = model.think_close_id if or_none else None
        if fixed_shapes is None:
            # FSDP moves the gathered weights, which a graph would go on reading where they were.
            fixed_shapes = model.device.type == "cuda" and not is_sharded(model.hf)
        self.fixed_shapes = fixed_shapes
        self.pack = pack
        # Who takes the calls of thoughts; see `rntp.rollout.tool_calls.serving`.
        self.tools: ToolCalls | None = None
        self._kept: dict[tuple[object, ...], Decoder] = {}

    @torch.no_grad()
    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """One rollout a context, in order; see `Engine`."""
        hf, pack = self.model.hf, self.pack
        if pack is None:
            pack = packing_pays(hf, self.budget + self.answer_tokens)
        with packed_weights(hf) if pack else nullcontext():
            return self._sample(contexts, place, check, policy_version)

    def _sample(
        self, contexts: Sequence[Context], place: Place, check: Check, policy_version: int
    ) -> list[Rollout]:
        rollouts: list[Rollout] = []
        for first in range(0, len(contexts), self.docs_per_batch):
            batch = contexts[first : first + self.docs_per_batch]
            check()
            prefix, outlooks = self._prefill(batch)
            positions = [
                place(context, next_token)
                for context, next_token in zip(batch, outlooks, strict=True)
            ]
            groups = self._think(batch, positions, prefix, check)
            for context, at, thoughts, next_token in zip(
                batch, positions, groups, outlooks, strict=True
            ):
                rollouts.append(
                    Rollout(
                        context, at, thoughts, *next_token.at(at), policy_version=policy_version
                    )
                )
        return rollouts

    def _prefill(
        self, contexts: Sequence[Context]
    ) -> tuple[PrefixRecorder, list[LazyNextTokenStats]]:
        """Keys and values of the contexts, and what the model expects of each."""
        device, lengths = self.model.device, tuple(len(c) for c in contexts)
        ids = torch.cat([c.token_ids for c in contexts]).to(device)
        recorder = PrefixRecorder(lengths, self.slots, device)
        position_ids = torch.cat([torch.arange(n) for n in lengths]).to(device)
        hidden = self.model.hidden(ids, position_ids, recorder)
        of_contexts = zip(ids.split(lengths), hidden.split(lengths), strict=True)
        return recorder, [LazyNextTokenStats(self.model, *of_context) for of_context in of_contexts]

    def _think(
        self,
        contexts: Sequence[Context],
        positions: Sequence[tuple[int, ...]],
        prefix: PrefixRecorder,
        check: Check,
    ) -> list[tuple[tuple[Thought, ...], ...]]:
        """Decode D · K · G branches in lock-step: [D][K][G] thoughts."""
        branches = self._branches(contexts, positions)
        decode = self._decoder(branches, prefix)
        if self.tools is None:
            ids_NT, logprob_NT = decode.thoughts(check)
            thoughts = [
                finish(ids, logprob, self.model.think_close_id)
                for ids, logprob in zip(ids_NT, logprob_NT, strict=True)
            ]
        else:
            thoughts = decode.calling_thoughts(self.tools, contexts, check)
        if self.answer_tokens and thoughts:
            ids_NA, logprob_NA = decode.answers(thoughts, check)
            thoughts = [
                answered(thought, ids, logprob, self.model.eos_id)
                for thought, ids, logprob in zip(thoughts, ids_NA, logprob_NA, strict=True)
            ]
        groups = [
            tuple(thoughts[i : i + self.thoughts]) for i in range(0, len(thoughts), self.thoughts)
        ]
        per_doc = len(positions[0])
        return [tuple(groups[i : i + per_doc]) for i in range(0, len(groups), per_doc)]

    def _branches(
        self, contexts: Sequence[Context], positions: Sequence[tuple[int, ...]]
    ) -> Branches:
        device = self.model.device
        position_DK = torch.tensor(positions, device=device)
        visible_DB = position_DK.repeat_interleave(self.thoughts, dim=1)
        ordinal = torch.tensor([c.ordinal for c in contexts], device=device)
        shift = torch.tensor([c.shift for c in contexts], device=device)
        return Branches(
            ordinal=ordinal.repeat_interleave(visible_DB.shape[1]),
            position=visible_DB.flatten(),
            page_position=(visible_DB - shift[:, None]).flatten(),
            member=members(positions, self.thoughts).flatten().to(device),
            visible=visible_DB,
        )

    def _decoder(self, branches: Branches, prefix: PrefixRecorder) -> Decoder:
        """Of these branches; with fixed shapes the one that has decoded as many before."""
        if not self.fixed_shapes or self.tools is not None:
            return self._new_decoder(branches, prefix)
        # A graph knows the weights by where they lie.
        addresses = tuple(p.data_ptr() for p in self.model.hf.parameters())
        key = (*branches.visible.shape, addresses)
        kept = self._kept.pop(key, None)
        if kept is None:
            kept = self._new_decoder(branches, prefix)
        else:
            kept.restart(branches, prefix)
        self._kept[key] = kept  # the last one is the one used last
        while len(self._kept) > KEPT_DECODERS:
            del self._kept[next(iter(self._kept))]
        return kept

    def _new_decoder(self, branches: Branches, prefix: PrefixRecorder) -> Decoder:
        return Decoder(
            self.model,
            branches,
            prefix,
            TokenSampler(self.seed, self.purpose, self.temperature, self.draw, self.none_id),
            budget=self.budget,
            answer_tokens=self.answer_tokens,
            # What tools give comes at unlike times, which no fixed step has a place for.
            fixed=self.fixed_shapes and self.tools is None,
            given=self.tools.most_given if self.tools else 0,
        )


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
        return [without_thoughts(context, policy_version) for context in contexts]


def without_thoughts(context: Context, policy_version: int = 0) -> Rollout:
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
    slots: int | None = None,
    or_none: bool = False,
) -> InProcessEngine | UnsharedEngine | ReadingEngine:
    """The engine of this process that a config asks for, sampling `thoughts` thoughts at each
    position, each with an answer of at most `answer_tokens` (0: with none), as the model can.
    slots: longest context, tokens; by default the run's. or_none: the first thought of every group
    is closed at once.
    """
    if thoughts == 0:
        return ReadingEngine()
    common: dict[str, Any] = {
        "thoughts": thoughts,
        "budget": config.thought.thought_tokens,
        "answer_tokens": answer_tokens,
        "temperature": config.thought.temperature,
        "seed": config.run.seed,
        "docs_per_batch": config.rollout.docs_per_batch,
        "purpose": purpose,
        "or_none": or_none,
        "draw": always(pause_id(model.tokenizer)) if config.thought.source == "pause" else draw,
    }
    if not model.shares:
        return UnsharedEngine(model, **common)
    return InProcessEngine(model, slots=slots or config.longest_context, **common)
