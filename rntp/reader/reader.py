"""A trained model that reads and writes, thinking by a rule."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.config.sections import Tools
from rntp.errors import ConfigError
from rntp.evaluation.pages import score_pages
from rntp.gate import Gate
from rntp.model import LanguageModel, load_model
from rntp.model.language_model import pick_device
from rntp.model.thought_tree import TokenTree
from rntp.model.tokenizer import decode, encode
from rntp.placement import Place
from rntp.reader.budget import price_for
from rntp.reader.carried import read_by_pieces
from rntp.reader.page import ReadPage, ReadThought
from rntp.reader.when import Here, When, most_tokens
from rntp.reader.writing import Written, write
from rntp.rollout import no_check
from rntp.rollout.engine import open_engine
from rntp.rollout.next_token_stats import LazyNextTokenStats
from rntp.rollout.tool_calls import ToolCalls, tool_calls
from rntp.run.settings import Settings
from rntp.types import Context, NextTokenStats, Rollout


class Reader:
    """Reads texts and writes on, thinking where a rule of `rntp.reader.when` says so.

    spec: an exported folder, or any model spec. settings: where they are not those beside the
    model. tools: that thoughts may call, by name with their settings, where they are not those of
    the run (an index may lie elsewhere by now); `{}` for none. seed: of everything that is drawn.
    Raises ConfigError where there is no such model.
    """

    def __init__(
        self,
        spec: str,
        settings: Settings | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "auto",
        seed: int = 0,
        tools: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> None:
        self.settings = settings or Settings.beside(spec)
        if tools is not None:
            own = {**self.settings.tools, "use": dict(tools)} if tools else {}
            self.settings = replace(self.settings, tools=own)
        markers = Tools.model_validate(self.settings.tools).markers
        self.seed = seed
        self.model: LanguageModel = load_model(
            spec,
            think_open=self.settings.think_open,
            think_close=self.settings.think_close,
            dtype=dtype,
            device=pick_device(device),
            tool_markers=markers if self.settings.tools else (),
        )
        if self.settings.mixing:
            self.model.add_mixing(None)
        if self.settings.piece is not None:
            self._check_pieces(self.settings.piece)
            return
        # A window of the page as in training, where the model sees as much.
        given = self._config().thought.tools.most_given
        branch = self.settings.thought_tokens + given + 2 + self.settings.horizon
        room = self.model.max_span - branch
        if room <= self.settings.min_prefix_tokens:
            raise ConfigError(
                f"{spec} sees {self.model.max_span} tokens, too few for a thought of "
                f"{self.settings.thought_tokens} behind {self.settings.min_prefix_tokens}; lower "
                "them"
            )
        context_tokens = min(self.settings.context_tokens, room)
        self.settings = replace(self.settings, context_tokens=context_tokens)

    def read(self, text: str, when: When) -> ReadPage:
        """Read a text from start to end, in contexts as long as those of training.

        Each thought is judged by the tokens behind it, with it and without; one that is closed at
        once is none. Thoughts do not see each other, but where the model was trained to carry a
        memory from piece to piece: see `rntp.reader.carried`.
        """
        if self.settings.piece is not None:
            ids = encode(self.model.tokenizer, text)
            return read_by_pieces(self.model, self._config(), ids, when)
        ids, length = encode(self.model.tokenizer, text), self.settings.context_tokens
        places, pages = list[int](), list[tuple[int, Context]]()
        thoughts: list[ReadThought] = []
        for number, start in enumerate(range(0, len(ids), length)):
            context = Context(number, "text", ids[start : start + length], start=start)
            if len(context) <= self.settings.min_prefix_tokens + self.settings.horizon:
                continue
            pages.append((start, context))
        with self._calls() as calls:
            for start, context in pages:
                rollouts = self._sampled(context, when, calls)
                found = [thought for rollout in rollouts for thought in self._worth(rollout)]
                found.sort(key=lambda thought: thought.position)
                thoughts += found
                places += [start + thought.position for thought in found]
        cuts = [0, *places, len(ids)]
        pieces = [decode(self.model.tokenizer, ids[a:b]) for a, b in pairwise(cuts)]
        thoughts = [replace(t, position=p) for t, p in zip(thoughts, places, strict=True)]
        return ReadPage(pieces, thoughts, len(ids))

    @torch.no_grad()
    def price(self, text: str, budget: float, *, least: int) -> float:
        """Find the price, nats a thought token, at which thinking by the gate keeps within a budget
        on a text. budget: thought tokens a token of the text. least: tokens between two thoughts.

        Nothing is thought for it: it takes one forward over the text. Raises ConfigError where the
        model has no gate, or carries memories.
        """
        if self.settings.piece is not None:
            raise ConfigError(
                "--budget: this model writes its memories at the ends of pieces, where no gate is "
                "asked; take every:N or entropy:X"
            )
        gate, parts = Gate.beside(self.model.spec), list[Tensor]()
        ids, length = encode(self.model.tokenizer, text), self.settings.context_tokens
        first, horizon = self.settings.min_prefix_tokens, self.settings.horizon
        for start in range(0, len(ids), length):
            page = ids[start : start + length]
            worth = torch.full((len(page), len(gate.tokens)), -torch.inf, dtype=torch.float64)
            if len(page) > first + horizon:
                hidden = TokenTree.build([(page, -1, 0)]).hidden(self.model)
                rows = hidden[first - 1 : len(page) - horizon]
                _, entropy, _ = self.model.logprob(rows, page[first : len(page) - horizon + 1])
                seen = gate.features(rows, entropy)
                worth[first : len(page) - horizon + 1] = gate.worth_now(seen)
            parts.append(worth)
        return price_for(torch.cat(parts), gate.tokens, budget * len(ids), least)

    def generate(
        self, prompt: str, when: When, *, tokens: int = 200, temperature: float = 1.0
    ) -> Iterator[Written]:
        """Write on behind a prompt, piece by piece as it comes; see `rntp.reader.writing`."""
        with self._calls() as calls:
            yield from write(
                self.model,
                self.settings,
                prompt,
                when,
                tokens=tokens,
                temperature=temperature,
                seed=self.seed,
                calls=calls,
            )

    def _check_pieces(self, piece: int) -> None:
        """Raise ConfigError where a memory, a piece and the next memory are too long together."""
        needed = 1 + 2 * (self.settings.thought_tokens + 2) + piece
        if needed > self.model.max_span:
            raise ConfigError(
                f"{self.model.spec} sees {self.model.max_span} tokens; memories of "
                f"{self.settings.thought_tokens} tokens and pieces of {piece} want {needed}; lower "
                "them"
            )

    @contextmanager
    def _calls(self) -> Iterator[ToolCalls | None]:
        """Take the calls of thoughts while the context is open; None where they may not call.

        Raises ConfigError or DataError where a tool cannot be opened.
        """
        if not self.settings.tools:
            yield None
            return
        with tool_calls(self.model, self._config()) as calls:
            yield calls

    def _sampled(self, context: Context, when: When, calls: ToolCalls | None) -> list[Rollout]:
        """The context with its thoughts, once for each length that the rule asks for. A thought
        that may be longer begins as a shorter one does."""
        wanted = self._wanted(context, when)
        rollouts: list[Rollout] = []
        for most in sorted(set(wanted.values())):
            at = tuple(position for position, tokens in wanted.items() if tokens == most)
            engine: Any = open_engine(self.model, self._config(most), thoughts=1, purpose="read")
            engine.tools = calls
            rollouts += engine.sample([context], _always(at), no_check)
        return rollouts

    @torch.no_grad()
    def _wanted(self, context: Context, when: When) -> dict[int, int]:
        """Where the rule thinks, ascending, and with how many tokens at most."""
        hidden = TokenTree.build([(context.token_ids, -1, 0)]).hidden(self.model)
        entropy_L = LazyNextTokenStats(
            self.model, context.token_ids.to(self.model.device), hidden
        ).entropy_L
        since, wanted = self.settings.min_prefix_tokens, dict[int, int]()
        last = len(context) - self.settings.horizon
        for position in range(self.settings.min_prefix_tokens, last + 1):
            said = when(Here(entropy_L[position], since, hidden[position - 1]))
            if most := most_tokens(said, self.settings.thought_tokens):
                wanted[position] = most
                since = 0
            since += 1
        return wanted

    def _worth(self, rollout: Rollout) -> list[ReadThought]:
        (page,) = score_pages(self.model, [rollout], self._config(), no_check)
        found = []
        for k, at in enumerate(page["positions"]):
            (thought,), (scored,) = rollout.thoughts[k], at["thoughts"]
            if not len(thought.content):
                continue
            gains = zip(scored["logp_think"], at["logp_empty"], strict=True)
            found.append(
                ReadThought(
                    rollout.positions[k],
                    decode(self.model.tokenizer, thought.content),
                    thought.content.tolist(),
                    thought.closed,
                    thought.num_tokens,
                    float(rollout.entropy[k]),
                    [think - empty for think, empty in gains],
                    thought.calls,
                )
            )
        return found

    def _config(self, most: int | None = None) -> Config:
        """The settings as the parts of a run that think and score know them. most: tokens of a
        thought, by default all that it may have."""
        settings = asdict(self.settings)
        return Config.parse(
            {
                "run": {"steps": 1, "dir": ".", "seed": self.seed},
                "model": {"spec": self.model.spec},
                "data": {
                    "source": ".",
                    "context_tokens": settings["context_tokens"],
                    "docs_per_step": 1,
                },
                "placement": {
                    "positions_per_doc": 1,
                    "min_prefix_tokens": settings["min_prefix_tokens"],
                },
                "thought": {
                    "thoughts_per_position": 2,
                    "thought_tokens": most or settings["thought_tokens"],
                    "temperature": settings["temperature"],
                    "tools": settings["tools"],
                },
                "reading": {"window": settings["window"], "piece": settings["piece"]},
                "reward": {"horizon": settings["horizon"]},
            }
        )


def _always(at: tuple[int, ...]) -> Place:
    """Think at these positions."""

    def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        return at

    return place
