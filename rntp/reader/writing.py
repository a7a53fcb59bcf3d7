"""Writing on behind a prompt, with thoughts on the way, a piece of text at a time.

With a window (`Settings.window`) the model goes on from *start · thought · last w tokens*: what it
has written may be longer than what it sees, and the thought carries the rest. Without one thoughts
stay where they were thought.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from rntp.model import ATTENTION, LanguageModel, own_attention
from rntp.model.tokenizer import decode, encode
from rntp.reader.when import Here, When
from rntp.rng import uniform
from rntp.rollout.sampling import draw
from rntp.run.settings import Settings


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
) -> Iterator[Written]:
    """Write at most `tokens` tokens; ends earlier where the model ends its text.

    Every draw is a function of the seed and its number. Whole characters only: a token that ends
    within one comes with the next.
    """
    writer = _Writer(model, settings, seed)
    page = encode(model.tokenizer, prompt)
    if not len(page):
        page = torch.tensor([model.start_id])
    with _own_attention(model):
        writer.begin(page)
        held, since = list[int](), len(page)
        for _ in range(tokens):
            if when(Here(writer.entropy(), since, writer.hidden)):
                if held:
                    yield Written("text", decode(model.tokenizer, torch.tensor(held)))
                    held = []
                yield Written("thought", decode(model.tokenizer, writer.think(page)))
                since = 0
            token = writer.draw("write", temperature)
            if token == model.eos_id:
                break
            page = torch.cat([page, torch.tensor([token])])
            writer.go_on(token, page)
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

    def __init__(self, model: LanguageModel, settings: Settings, seed: int) -> None:
        self._model, self._settings, self._seed = model, settings, seed
        self._markers = (model.think_open_id, model.think_close_id)
        # transformers 5.24 has begun to call it otherwise.
        names = signature(model.hf.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._room = settings.thought_tokens + 3  # of a thought, and the token behind it
        self._drawn = self._seen = 0
        self._cache: Any = None
        self._logits = self.hidden = torch.zeros(0)

    def begin(self, ids: Tensor) -> None:
        """See these tokens and nothing before them."""
        self._cache, self._seen = None, 0
        self.feed(ids[-(self._model.max_span - self._room) :])

    @torch.no_grad()
    def feed(self, ids: Tensor) -> None:
        """See these tokens, too."""
        seen = {self._cache_name: self._cache}
        found = self._model.hf(
            ids[None].to(self._model.device), use_cache=True, output_hidden_states=True, **seen
        )
        self._cache = getattr(found, self._cache_name, None) or found.past_key_values
        self._logits = found.logits[0, -1:].float()
        self.hidden = found.hidden_states[-1][0, -1]
        self._seen += len(ids)

    def go_on(self, token: int, page: Tensor) -> None:
        """See a token of the page. Where no more can be seen, only the later half stays."""
        if self._seen + self._room > self._model.max_span:
            self.begin(page[-(self._model.max_span - self._room) // 2 :])
        else:
            self.feed(torch.tensor([token]))

    def entropy(self) -> Tensor:
        """Of the next token, nats."""
        logp = torch.log_softmax(self._logits[0], dim=-1)
        return -(logp.exp() * logp).sum()

    def draw(self, purpose: str, temperature: float, *, markers: bool = False) -> int:
        """The next token, which is not fed yet. markers: whether it may be the close marker."""
        logits = self._logits.clone() if markers else self._bare()
        logits[:, self._markers[0]] = -torch.inf
        noise = uniform(self._seed, purpose, torch.tensor([self._drawn])).to(logits.device)
        self._drawn += 1
        token, _ = draw(logits, noise, temperature)
        return int(token)

    def think(self, page: Tensor) -> Tensor:
        """Think behind all that is seen, and go on from there: int64, the thought's tokens."""
        settings, (opening, closing) = self._settings, self._markers
        self.feed(torch.tensor([opening]))
        thought: list[int] = []
        while len(thought) < settings.thought_tokens:
            token = self.draw("think", settings.temperature, markers=True)
            if token == closing:
                break
            thought.append(token)
            self.feed(torch.tensor([token]))
        if settings.window is None:
            self.feed(torch.tensor([closing]))
            return torch.tensor(thought, dtype=torch.int64)
        start = torch.tensor([self._model.start_id])
        memory = torch.tensor([opening, *thought, closing])
        window = page[len(page) - min(settings.window, len(page)) :]
        self.begin(torch.cat([start, memory, window]))
        return torch.tensor(thought, dtype=torch.int64)

    def _bare(self) -> Tensor:
        """Logits without the markers, which are no text."""
        logits = self._logits.clone()
        logits[:, list(self._markers)] = -torch.inf
        return logits
