"""Writing on behind a prompt, with thoughts on the way, a piece of text at a time.

With a window (`Settings.window`) the model goes on from *start · thought · last w tokens*: what it
has written may be longer than what it sees, and the thought carries the rest. Without one thoughts
stay where they were thought. A model that carries a memory (`Settings.piece`) writes one at the end
of each piece, of the prompt as of what it writes itself; see `rntp.rollout.carried`.

A model that mixes (`Settings.mixing`) draws each token from (1 − w) p₀ + w p₁: p₁ is what it says
behind its thoughts, p₀ behind the text alone, which is kept in a second cache.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from rntp.model import ATTENTION, LanguageModel, own_attention
from rntp.model.mixing import mixed_logp
from rntp.model.reading import START_TOKENS
from rntp.model.tokenizer import decode, encode
from rntp.reader.when import Here, When, most_tokens
from rntp.rng import uniform
from rntp.rollout import no_check
from rntp.rollout.calling_branch import CallingBranch, read_results
from rntp.rollout.carried import as_read, written_by_nobody
from rntp.rollout.sampling import draw
from rntp.rollout.tool_calls import ToolCalls
from rntp.run.settings import Settings
from rntp.types import Context, Thought


@dataclass(frozen=True)
class Written:
    """A piece of what was written. kind: `text`, or `thought` for one whole thought."""

    kind: str
    text: str


def write(
    model: LanguageModel,
    settings: Settings,
    prompt: str,
    when: When,
    *,
    tokens: int,
    temperature: float,
    seed: int,
    calls: ToolCalls | None = None,
) -> Iterator[Written]:
    """Write at most `tokens` tokens; ends earlier where the model ends its text. calls: takes those
    of thoughts.

    Every draw is a function of the seed and its number. Whole characters only: a token that ends
    within one comes with the next.
    """
    writer = (_Writer if model.mixing is None else _MixedWriter)(model, settings, seed, calls)
    page = encode(model.tokenizer, prompt)
    if not len(page):
        page = torch.tensor([model.start_id])
    carrier = None if settings.piece is None else _Carrier(writer, settings, when)
    with _own_attention(model):
        if carrier is None:
            writer.begin(page)
        else:
            for memory in carrier.read(page):
                yield Written("thought", decode(model.tokenizer, memory))
        held, since = list[int](), len(page)
        for _ in range(tokens):
            thought = None
            if carrier is not None:
                thought = carrier.due(page)
            elif most := most_tokens(when(writer.here(since)), settings.thought_tokens):
                thought, since = writer.think(page, most), 0
            if thought is not None:
                if held:
                    yield Written("text", decode(model.tokenizer, torch.tensor(held)))
                    held = []
                yield Written("thought", decode(model.tokenizer, thought))
            token = writer.draw("write", temperature)
            if token == model.eos_id:
                break
            page = torch.cat([page, torch.tensor([token])])
            if carrier is None:
                writer.go_on(token, page)
            else:
                carrier.go_on(page)
            held.append(token)
            since += 1
            text = decode(model.tokenizer, torch.tensor(held))
            if not text.endswith("\ufffd"):
                yield Written("text", text)
                held = []
        if held:
            yield Written("text", decode(model.tokenizer, torch.tensor(held)))


@contextmanager
def _own_attention(model: LanguageModel) -> Iterator[None]:
    """Let the model attend as transformers has it, which keeps a cache of what was seen."""
    if not model.shares:
        yield
        return
    model.hf.set_attn_implementation(own_attention(model.hf))
    try:
        yield
    finally:
        model.hf.set_attn_implementation(ATTENTION)


class _Writer:
    """The model with what it has seen so far in its cache."""

    def __init__(
        self, model: LanguageModel, settings: Settings, seed: int, calls: ToolCalls | None = None
    ) -> None:
        self._model, self._settings, self._seed, self._calls = model, settings, seed, calls
        self._markers = (model.think_open_id, model.think_close_id)
        # transformers 5.24 has begun to call it otherwise.
        names = signature(model.hf.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self.longest = settings.thought_tokens
        given = calls.most_given if calls else 0
        self._room = self.longest + given + 3  # of a thought, and the token behind it
        self._drawn = self._seen = 0
        self._cache: Any = None
        self._logits = self.hidden = torch.zeros(0)
        self.expected = list[Tensor]()  # entropies of the tokens that were fed since the start

    def begin(self, ids: Tensor, *, noting: bool = False) -> None:
        """See these tokens and nothing before them; see `feed`."""
        self._cache, self._seen, self.expected = None, 0, []
        self.feed(ids[-(self._model.max_span - self._room) :], noting=noting)

    @torch.no_grad()
    def feed(self, ids: Tensor, *, noting: bool = False) -> None:
        """See these tokens, too. noting: how uncertain each of them was goes to `expected`."""
        seen = {self._cache_name: self._cache}
        found = self._model.hf(
            ids[None].to(self._model.device), use_cache=True, output_hidden_states=True, **seen
        )
        self._cache = getattr(found, self._cache_name, None) or found.past_key_values
        if noting:
            before = [self._logits] if self._seen else []
            rows = torch.cat([*before, found.logits[0, :-1].float()])
            self.expected += list(_entropy(rows))
        self._logits = found.logits[0, -1:].float()
        self.hidden = found.hidden_states[-1][0, -1]
        self._seen += len(ids)

    def go_on(self, token: int, page: Tensor) -> None:
        """See a token of the page. Where no more can be seen, only the later half stays."""
        if self._seen + self._room > self._model.max_span:
            self.begin(page[-(self._model.max_span - self._room) // 2 :])
        else:
            self.follow(token)

    def follow(self, token: int) -> None:
        """See one more token of the text."""
        self.feed(torch.tensor([token]))

    def here(self, since: int) -> Here:
        """Say what is known of the next token. since: tokens since the last thought."""
        return Here(_entropy(self._logits)[0], since, self.hidden)

    def logp(self) -> Tensor:
        """Of every token as the next one, nats, [V]."""
        return self._logits[0].log_softmax(dim=-1)

    def draw(self, purpose: str, temperature: float, *, markers: bool = False) -> int:
        """The next token, which is not fed yet. markers: whether it may be the close marker."""
        logits = self._logits.clone() if markers else self._bare()
        logits[:, self._markers[0]] = -torch.inf
        noise = uniform(self._seed, purpose, torch.tensor([self._drawn])).to(logits.device)
        self._drawn += 1
        token, _ = draw(logits, noise, temperature)
        return int(token)

    def ponder(self, page: Tensor, most: int) -> Thought:
        """Think behind all that is seen, at most so many tokens; it is not closed yet. page: what
        calls may be about."""
        settings, (opening, closing) = self._settings, self._markers
        self.feed(torch.tensor([opening]))
        if self._calls is not None:
            return self._call(page, most, self._calls)
        thought: list[int] = []
        while len(thought) < most:
            token = self.draw("think", settings.temperature, markers=True)
            if token == closing:
                break
            thought.append(token)
            self.feed(torch.tensor([token]))
        return written_by_nobody(torch.tensor(thought, dtype=torch.int64))

    def _call(self, page: Tensor, most: int, calls: ToolCalls) -> Thought:
        """The same by a model that may call tools on the way."""
        branch = CallingBranch.begin(Context(0, "written", page), len(page), calls)
        fed = 0
        while True:
            if not branch.closed and fed < len(branch.ids):
                self.feed(torch.tensor(branch.ids[fed:]))
                fed = len(branch.ids)
            if branch.ended:
                return branch.thought()
            if branch.waits is None:
                token = self.draw("think", self._settings.temperature, markers=True)
                branch.draw(token, 0.0, calls, most)
            else:
                read_results([branch], calls, no_check)

    def think(self, page: Tensor, most: int) -> Tensor:
        """Think behind all that is seen, at most so many tokens, and go on from there: int64, the
        thought's tokens."""
        thought, window = self.ponder(page, most), self._settings.window
        if window is None:
            self.feed(torch.tensor([self._markers[1]]))
        else:
            self.remember(thought, page[len(page) - min(window, len(page)) :])
        return thought.content

    def remember(self, memory: Thought, behind: Tensor) -> None:
        """See a memory and what stands behind it, and nothing before."""
        before = as_read(self._model, memory)
        self.begin(torch.cat([before, behind]))

    def _bare(self) -> Tensor:
        """Logits without the markers, which are no text."""
        return self._without_markers(self._logits.clone())

    def _without_markers(self, logits_1V: Tensor) -> Tensor:
        logits_1V[:, [*self._markers, *self._model.tool_ids]] = -torch.inf
        return logits_1V


class _MixedWriter(_Writer):
    """The same for a model that mixes what it predicts behind its thoughts with what it predicts
    without them. It thinks where the text alone says so, as in training."""

    def __init__(
        self, model: LanguageModel, settings: Settings, seed: int, calls: ToolCalls | None = None
    ) -> None:
        super().__init__(model, settings, seed, calls)
        self._text = _Writer(model, settings, seed)

    def begin(self, ids: Tensor, *, noting: bool = False) -> None:
        super().begin(ids, noting=noting)
        self._text.begin(ids)

    def follow(self, token: int) -> None:
        super().follow(token)
        self._text.follow(token)

    def here(self, since: int) -> Here:
        return self._text.here(since)

    def remember(self, memory: Thought, behind: Tensor) -> None:
        before = as_read(self._model, memory)
        super().begin(torch.cat([before, behind]))
        self._text.begin(torch.cat([before[:START_TOKENS], behind]))

    @torch.no_grad()
    def _bare(self) -> Tensor:
        mixing = self._model.mixing
        assert mixing is not None
        log_odds = mixing(self._text.hidden, self.hidden)
        return self._without_markers(mixed_logp(self._text.logp(), self.logp(), log_odds)[None])


class _Carrier:
    """The memory of a text that is read piece by piece, or written.

    piece: W, tokens. when: asked at the end of each piece whether its memory is written.
    """

    def __init__(self, writer: _Writer, settings: Settings, when: When) -> None:
        assert settings.piece is not None
        assert settings.window is not None
        self._writer, self._when = writer, when
        self._piece, self._window = settings.piece, settings.window
        self._memory = written_by_nobody(torch.zeros(0, dtype=torch.int64))
        self._first = self._written = 0  # where this piece begins, and where a memory was written

    def read(self, page: Tensor) -> Iterator[Tensor]:
        """See a text, and yield the memories that are written on the way; what is left of it is
        the beginning of a piece."""
        while True:
            stop = self._first + self._piece
            read = self._writer.feed if self._first else self._writer.begin
            read(page[self._first : stop], noting=True)
            if stop >= len(page):
                return
            if (memory := self.due(page[:stop])) is not None:
                yield memory

    def go_on(self, page: Tensor) -> None:
        """See the last token of a text."""
        self._writer.feed(page[-1:], noting=True)

    def due(self, page: Tensor) -> Tensor | None:
        """At the end of a piece go on to the next one; returns the memory if one was written."""
        stop = self._first + self._piece
        if len(page) < stop:
            return None
        entropy = torch.stack(self._writer.expected).mean()
        written = self._when(Here(entropy, stop - self._written, torch.zeros(0)))
        if written:
            if self._first:
                self._writer.remember(self._memory, page[self._first : stop])
            else:
                self._writer.begin(page)
            self._memory = self._writer.ponder(page[:stop], self._writer.longest)
            self._written = stop
        self._writer.remember(self._memory, page[max(stop - self._window, 0) : stop])
        self._first = stop
        return self._memory.content if written else None


def _entropy(logits_NV: Tensor) -> Tensor:
    """Nats, [N]."""
    logp = torch.log_softmax(logits_NV, dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)
