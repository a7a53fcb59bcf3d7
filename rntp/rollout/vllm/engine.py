"""Thoughts by vLLM: one request a thought, each with a seed of its own.

The seed is a hash of (run seed, purpose, ordinal, position, member), so that no two thoughts share
their noise. What vLLM draws also depends, in its last bits, on which requests it works at together:
the same thought may come out otherwise when a run is resumed, unless rollouts come from a store.
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel
from rntp.model.thought_tree import thought_branch
from rntp.placement import Place
from rntp.placement.repeats import members
from rntp.rng import hashed
from rntp.rollout import Check, no_check
from rntp.rollout.calling_branch import CallingBranch, read_results
from rntp.rollout.finish import answered, finish
from rntp.rollout.next_token_stats import read_contexts
from rntp.rollout.store.weights import canary, canary_distance, canary_ids
from rntp.rollout.tool_calls import ToolCalls
from rntp.rollout.vllm.child import FOLDER, Frame, rows
from rntp.rollout.vllm.environment import find_environment
from rntp.rollout.vllm.process import CHILD, Child
from rntp.rollout.vllm.weights import canary_bound, write_weights
from rntp.types import Context, Rollout, Thought

MOST_TOGETHER = 256  # requests that vLLM works at at a time
_TRIES = 2  # loads of the same weights

Start = Callable[[Path], Child]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Branch:
    """A thought to be: of which context, where in its tokens, and which member of its group."""

    context: Context
    position: int
    member: int


class VllmEngine:
    """Samples as `rntp.rollout.engine.InProcessEngine` does, which see, through vLLM.

    Works between `open` and `close`. purpose names the stream of random numbers. start: starts the
    child, with a log. write: writes the model for it.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: Config,
        *,
        thoughts: int,
        answer_tokens: int = 0,
        purpose: str = "thought",
        start: Start | None = None,
        write: Callable[[LanguageModel, Path], None] = write_weights,
    ) -> None:
        self.model, self.config = model, config
        self.thoughts, self.answer_tokens, self.purpose = thoughts, answer_tokens, purpose
        self.docs_per_batch = config.rollout.docs_per_batch
        self._start = start or self._start_vllm
        self._write = write
        self._child: Child | None = None
        self._folder: Path | None = None
        self._log: Path | None = None
        self._loaded: Tensor | None = None  # the trainer's canary of the weights that vLLM has
        self._version, self._loads = -1, 0
        self._load_s = 0.0
        self._seen: dict[bytes, bytes] = {}  # the trainer's canary, by vLLM's; digests of both
        # Who takes the calls of thoughts; see `rntp.rollout.tool_calls.serving`.
        self.tools: ToolCalls | None = None
        self.versions = ""
        self.canary = torch.zeros(0)  # vLLM's own, float32 nats
        self.distance = float("nan")  # of the two, nats a token

    def open(self, log: Path) -> None:
        """Start vLLM with the weights as they are. log: takes what it prints.

        Raises ConfigError where there is no vLLM, or it cannot run this model.
        """
        self._log = log
        with self._closed_on_errors():
            self._take_weights(0, no_check)

    def close(self) -> None:
        """End the child, and remove its weights."""
        if self._child is not None:
            self._child.close()
        self._child, self._loaded = None, None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    def metrics(self) -> dict[str, float | str]:
        """What the step's record says of the sampler."""
        return {"sampler/canary": self.distance, "sampler/load_s": self._load_s}

    @torch.no_grad()
    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """One rollout a context, in order; see `Engine`.

        Raises SamplersLost where vLLM's process ends, and ConfigError where it does not compute
        with the weights that it has loaded.
        """
        rollouts: list[Rollout] = []
        with self._closed_on_errors():
            self._take_weights(policy_version, check)
            for first in range(0, len(contexts), self.docs_per_batch):
                check()
                batch = contexts[first : first + self.docs_per_batch]
                rollouts += self._sample(batch, place, check, policy_version)
        return rollouts

    @contextmanager
    def _closed_on_errors(self) -> Iterator[None]:
        """End the child where anything fails: what it was asked would answer the next question."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _sample(
        self, batch: Sequence[Context], place: Place, check: Check, version: int
    ) -> list[Rollout]:
        outlooks = read_contexts(self.model, batch)
        placed = [place(c, next_token) for c, next_token in zip(batch, outlooks, strict=True)]
        branches = [
            Branch(context, position, member)
            for context, at in zip(batch, placed, strict=True)
            for position, of_row in zip(at, members([at], self.thoughts).tolist(), strict=True)
            for member in of_row
        ]
        drawn = iter(self._think(branches, check))
        rollouts = []
        for context, at, next_token in zip(batch, placed, outlooks, strict=True):
            groups = tuple(tuple(next(drawn) for _ in range(self.thoughts)) for _ in at)
            rollouts.append(
                Rollout(context, at, groups, *next_token.at(at), policy_version=version)
            )
        return rollouts

    def _think(self, branches: Sequence[Branch], check: Check) -> list[Thought]:
        """A thought for each branch, and its answer."""
        model, markers = self.model, (self.model.think_open_id, self.model.think_close_id)
        prompts = [_prefix(b, torch.tensor(markers[:1])) for b in branches[:: self.thoughts]]
        of = np.arange(len(branches)) // self.thoughts
        budget, close = self.config.thought.thought_tokens, model.think_close_id
        if self.tools is None:
            budgets = [budget] * len(branches)
            drawn = self._draw(branches, prompts, of, self.purpose, budgets, [close], check)
            found = [finish(ids, logprobs, close) for ids, logprobs in drawn]
        else:
            found = self._call(self.tools, branches, budget, check)
        if not self.answer_tokens or not found:
            return found
        behind = [
            _prefix(b, thought_branch(t.sampled_ids, t.closed, *markers))
            for b, t in zip(branches, found, strict=True)
        ]
        of, purpose = np.arange(len(branches)), f"{self.purpose} answer"
        budgets = [self.answer_tokens] * len(branches)
        stops = [] if model.eos_id is None else [model.eos_id]
        drawn = self._draw(branches, behind, of, purpose, budgets, stops, check)
        return [answered(t, *row, model.eos_id) for t, row in zip(found, drawn, strict=True)]

    def _call(
        self, tools: ToolCalls, branches: Sequence[Branch], budget: int, check: Check
    ) -> list[Thought]:
        """Thoughts that call tools, in rounds: each goes on to its end or to a call."""
        model, rounds = self.model, 0
        every = [CallingBranch.begin(b.context, b.position, tools) for b in branches]
        stops = [model.think_close_id, model.tool_ids[1]]
        while going := [n for n, branch in enumerate(every) if not branch.ended]:
            prompts = [
                _prefix(branches[n], torch.tensor([model.think_open_id, *every[n].ids]))
                for n in going
            ]
            drawn = self._draw(
                [branches[n] for n in going],
                prompts,
                np.arange(len(going)),
                f"{self.purpose} {rounds}" if rounds else self.purpose,
                [budget - every[n].drawn for n in going],
                stops,
                check,
            )
            for n, row in zip(going, drawn, strict=True):
                for token, logprob in zip(*(part.tolist() for part in row), strict=True):
                    every[n].draw(token, logprob, tools, budget)
            read_results(every, tools, check)
            rounds += 1
        return [branch.thought() for branch in every]

    def _draw(
        self,
        branches: Sequence[Branch],
        prompts: Sequence[Tensor],
        of: np.ndarray,
        purpose: str,
        budgets: Sequence[int],
        stops: Sequence[int],
        check: Check,
    ) -> list[tuple[Tensor, Tensor]]:
        """Tokens and float32 log-probs of each branch. of: [N], which prompt it goes on from.
        budgets: most tokens of each. stops: ids that end it."""
        if not branches:
            return []
        page_positions = torch.tensor([b.position - b.context.shift for b in branches])
        ordinals = torch.tensor([b.context.ordinal for b in branches])
        of_group = torch.tensor([b.member for b in branches])
        seeds = hashed(self.config.run.seed, purpose, ordinals, page_positions, of_group)
        asked = Frame(
            "sample",
            {
                "salt": self._salt,
                "temperature": self.config.thought.temperature,
                "stops": list(stops),
            },
            {**_flat(prompts), "of": of, "seed": seeds.numpy(), "budget": np.asarray(budgets)},
        )
        arrays = self._running.ask(asked, "sampled", check).arrays
        lengths, ids, logprobs = arrays["length"], arrays["ids"], arrays["logprobs"]
        sound = (
            len(lengths) == len(branches)
            and len(ids) == len(logprobs) == lengths.sum()
            and ((lengths >= 1) & (lengths <= budgets)).all()
            and ((ids >= 0) & (ids < self.model.vocabulary)).all()
            and (np.isfinite(logprobs) & (logprobs <= 1e-3)).all()
        )
        if not sound:
            raise ConfigError(
                "vLLM gave thoughts that are none (too long, unknown tokens, or log-probs that are "
                f"not finite); see {self._log}, try model.dtype: float32, or set rollout.engine to "
                "inprocess"
            )
        return [
            (torch.from_numpy(i.astype(np.int64)), torch.from_numpy(p.astype(np.float32)))
            for i, p in zip(rows(ids, lengths), rows(logprobs, lengths), strict=True)
        ]

    def _take_weights(self, version: int, check: Check) -> None:
        """Let vLLM have the model's weights, if it does not.

        Whether it does is told by the trainer's own canary, equal to the bit: a version may come
        again with other weights, after a run has gone back.
        """
        now = canary(self.model, self.config.run.seed)
        if self._loaded is not None and version == self._version and torch.equal(now, self._loaded):
            return
        begun, expected = time.monotonic(), _digest(now)
        for _ in range(_TRIES):
            self._load(version, check)
            self.canary = self._scored(check)
            self.distance = canary_distance(self.canary, now)
            # Rounding hides a small step. Log-probs that vLLM has given before, to the bit, give
            # away that it is back at weights of the start, or of an earlier step.
            stale = self._seen.setdefault(_digest(self.canary), expected) != expected
            if not stale and self.distance <= canary_bound(self.config, self.model.head.dtype):
                break
        else:
            self._refuse(stale)
        self._load_s = time.monotonic() - begun
        self._loaded, self._version = now, version

    def _load(self, version: int, check: Check) -> None:
        """Write the weights and have them loaded; starts the child if there is none."""
        folder = Path(tempfile.mkdtemp(prefix=FOLDER))
        before, self._folder = self._folder, folder
        self._loads, self._version = self._loads + 1, version
        try:
            self._write(self.model, folder)
            if self._child is None:
                assert self._log is not None, "sample between open and close"
                self._child = self._start(self._log)
                opened = self._child.ask(Frame("open", self._model_facts(folder)), "opened", check)
                self.versions = f"vllm {opened.facts['vllm']}, torch {opened.facts['torch']}"
            else:
                self._child.ask(Frame("load", {"folder": str(folder)}), "loaded", check)
        finally:
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)

    def _scored(self, check: Check) -> Tensor:
        """vLLM's log-probs of the canary's sequences."""
        ids = canary_ids(self.model, self.config.run.seed)
        asked = Frame("score", {"salt": self._salt}, _flat(list(ids)))
        found = self._running.ask(asked, "scored", check).arrays["logprobs"]
        return torch.from_numpy(found.astype(np.float32))

    def _refuse(self, stale: bool) -> None:
        bound = canary_bound(self.config, self.model.head.dtype)
        what = (
            "are those of earlier weights, to the bit"
            if stale
            else f"lie {self.distance:.3g} nats a token from the trainer's, {bound:g} at most"
        )
        raise ConfigError(
            f"vLLM does not compute with the weights of version {self._version}: its log-probs of "
            f"fixed sequences {what}, after {_TRIES} loads. Nothing was sampled with them. See "
            f"{self._log}; try model.dtype: float32, which rounds less, or set rollout.engine to "
            "inprocess"
        )

    @property
    def _running(self) -> Child:
        assert self._child is not None, "sample between open and close"
        return self._child

    @property
    def _salt(self) -> str:
        """What keeps cached keys and values of other weights apart: the version, and the load."""
        return f"v{self._version}.{self._loads}"

    def _model_facts(self, folder: Path) -> dict[str, object]:
        """Arguments of `vllm.LLM`."""
        return {
            "model": str(folder),
            "dtype": self.config.model.dtype,
            "max_model_len": self.config.span_tokens,
            "max_num_seqs": MOST_TOGETHER,
            "kv_cache_memory_bytes": int(self.config.rollout.engine.get("cache_gib") * (1 << 30)),
            # Prefixes are shared by whole blocks; 32 is the least that its CPU kernels take.
            "block_size": 32,
            "seed": 0,
        }

    def _start_vllm(self, log: Path) -> Child:
        found = find_environment(self.config)
        variables = found.variables(torch.get_num_threads())
        patience_s = self.config.run.timeouts_s.hang
        return Child([str(found.python), str(CHILD)], log, variables, patience_s)


def vllm_of(engine: object) -> VllmEngine | None:
    """Find the engine that samples by vLLM within another, or None."""
    while hasattr(engine, "inner"):
        engine = engine.inner
    return engine if isinstance(engine, VllmEngine) else None


@contextmanager
def running(engine: object, folder: Path, say: Say) -> Iterator[None]:
    """Keep the vLLM of an engine running until the context is left; nothing where it has none.

    folder: takes vllm.txt, what it prints. say: tells people a line. Raises ConfigError.
    """
    found = vllm_of(engine)
    if found is None:
        yield
        return
    say("starting vLLM")
    found.open(folder / "vllm.txt")
    say(
        f"thoughts are sampled by {found.versions}; log-probs of fixed sequences lie "
        f"{found.distance:.2g} nats from the trainer's"
    )
    try:
        yield
    finally:
        found.close()


def _digest(canary: Tensor) -> bytes:
    return hashlib.blake2b(canary.numpy().tobytes(), digest_size=16).digest()


def _prefix(branch: Branch, more: Tensor) -> Tensor:
    return torch.cat([branch.context.token_ids[: branch.position], more])


def _flat(ids: Sequence[Tensor]) -> dict[str, np.ndarray]:
    lengths = np.asarray([len(row) for row in ids], dtype=np.int64)
    return {"ids": torch.cat(list(ids)).to(torch.int32).numpy(), "length": lengths}
