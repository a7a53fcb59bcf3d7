"""Held-out pages read from start to end in a context that does not grow, beside the whole of it.

A page is cut into pieces of W tokens, and each is predicted in three ways:

    window       start · last w tokens · piece
    memory       start · <think> memory </think> · last w tokens · piece
    everything   all of the page before · piece, as far as the model reaches

The memory is written at the end of each piece from the memory before and that piece, and from
nothing else (see `rntp.rollout.carried`). Whether it is written there, or the memory before goes
on, is asked of a `Rewrites`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

import torch
from rntp_kernels.tree_attention.layout import ROOT
from torch import Tensor

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.thought_tree import TokenTree
from rntp.rollout import Check, Engine, no_check
from rntp.rollout.carried import as_read, piece_behind, written_by_nobody
from rntp.rollout.engine import open_engine
from rntp.rollout.tool_calls import serving
from rntp.types import Context, NextTokenStats, Thought

ARMS = ("window", "memory", "everything")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Piece:
    """A piece of a page that has been read. first, stop: its tokens' indices in the page.

    memory: what it was read behind. entropy_W, nll_W: float32 nats, what the model expected of its
    tokens, and how wrong it was.
    """

    page: Context
    first: int
    stop: int
    memory: Thought
    entropy_W: Tensor
    nll_W: Tensor


class Rewrites(Protocol):
    """Decides whether a memory is written at the end of a piece."""

    def __call__(self, piece: Piece) -> bool:
        """Where it is false, the memory before goes on, and nothing is sampled."""
        ...


def always(piece: Piece) -> bool:
    """Write a memory at the end of every piece."""
    return True


@dataclass
class PageReading:
    """What was found of one page.

    nll: by arm, nats of each token behind the first piece, float32; shorter where the model does
    not reach. memories: text of each link, "" at the first; written: of the links behind it, which
    were.
    """

    page: Context
    nll: dict[str, Tensor] = field(default_factory=dict)
    memories: list[Thought] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)


@dataclass
class Spent:
    """What an arm took for all pages: seconds, tokens computed, most tokens held at a time."""

    seconds: float = 0.0
    computed: int = 0
    held: int = 0


@torch.no_grad()
def read_pages(
    model: LanguageModel,
    pages: Sequence[Context],
    config: Config,
    *,
    arms: Sequence[str] = ARMS,
    rewrites: Rewrites = always,
    check: Check = no_check,
    progress: Progress = lambda name, done, total: None,
) -> tuple[list[PageReading], dict[str, Spent]]:
    """Read pages of more than one piece each by all arms, or those that are named.

    `reading.piece` and `reading.window` of the config say how. Pages are of any length; with
    memory, all that are long enough go from piece to piece together.
    """
    reader = _Reader(model, config, check)
    found = [PageReading(page) for page in pages]
    spent = {arm: Spent() for arm in ARMS}
    if "everything" in arms:
        _everything(reader, found, spent["everything"])
    progress("read pages", 1, 3)
    if "window" in arms:
        _window(reader, found, spent["window"])
    progress("read pages", 2, 3)
    if "memory" in arms:
        engine = open_engine(
            model, config, thoughts=1, purpose="page memory", slots=config.link_tokens + 1
        )
        with serving(engine, model, config):
            _memory(reader, engine, found, spent["memory"], rewrites)
    progress("read pages", 3, 3)
    return found, spent


class _Reader:
    """Predicts pieces behind what stands before them."""

    def __init__(self, model: LanguageModel, config: Config, check: Check) -> None:
        assert config.reading.piece is not None
        assert config.reading.window is not None
        self.model = model
        self.piece = config.reading.piece
        self.window = config.reading.window
        self._most = config.parallel.tokens_per_microbatch
        self.check = check

    def cuts(self, page: Context) -> list[tuple[int, int]]:
        """First and stop of each piece behind the first one."""
        length = len(page)
        return [(a, min(a + self.piece, length)) for a in range(self.piece, length, self.piece)]

    def first_piece(self, page: Context) -> tuple[Tensor, Tensor]:
        """What all arms begin with: as asked of `read`."""
        return page.token_ids[:1], page.token_ids[1 : self.piece]

    def behind(self, page: Context, first: int) -> Tensor:
        """The start token and the window before a piece, int64 [1 + w]."""
        ids = page.token_ids
        start = ids.new_tensor([self.model.start_id])
        return torch.cat([start, ids[max(first - self.window, 0) : first]])

    def read(
        self, asked: Sequence[tuple[Tensor, Tensor]], spent: Spent
    ) -> list[tuple[Tensor, Tensor]]:
        """Entropy and loss of each token, nats on the CPU, [n] each; asked: (what stands before,
        the tokens), int64."""
        found: list[tuple[Tensor, Tensor]] = []
        begun, batch = perf_counter(), list[tuple[Tensor, Tensor]]()
        for before, tokens in asked:
            size = sum(len(b) + len(t) for b, t in batch)
            if batch and size + len(before) + len(tokens) > self._most:
                found += self._forward(batch)
                batch = []
            batch.append((before, tokens))
            spent.computed += len(before) + len(tokens) - 1
            spent.held = max(spent.held, len(before) + len(tokens) - 1)
        found += self._forward(batch) if batch else []
        spent.seconds += perf_counter() - begun
        return found

    def _forward(self, batch: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        self.check()
        device = self.model.device
        tree = TokenTree.build([(torch.cat([b, t[:-1]]), ROOT, 0) for b, t in batch])
        ends = zip(tree.layout.offsets[1:], batch, strict=True)
        rows = torch.cat([torch.arange(end - len(t), end) for end, (_, t) in ends])
        targets = torch.cat([t for _, t in batch])
        hidden = tree.hidden(self.model).index_select(0, rows.to(device))
        logp, entropy, _ = self.model.logprob(hidden, targets.to(device))
        sizes = [len(t) for _, t in batch]
        parts = entropy.cpu().split(sizes), (-logp).cpu().split(sizes)
        return list(zip(*parts, strict=True))


def _everything(reader: _Reader, found: Sequence[PageReading], spent: Spent) -> None:
    """Read each page at once, as far as the model reaches."""
    asked = []
    for reading in found:
        ids = reading.page.token_ids[: reader.model.max_span]
        asked.append((ids[: reader.piece], ids[reader.piece :]))
    for reading, (_, nll) in zip(found, reader.read(asked, spent), strict=True):
        reading.nll["everything"] = nll


def _window(reader: _Reader, found: Sequence[PageReading], spent: Spent) -> None:
    """Read each piece behind the last tokens before it."""
    for reading in found:
        page = reading.page
        asked = [reader.first_piece(page)]
        for first, stop in reader.cuts(page):
            asked.append((reader.behind(page, first), page.token_ids[first:stop]))
        _, *pieces = reader.read(asked, spent)
        reading.nll["window"] = torch.cat([nll for _, nll in pieces])


def _memory(
    reader: _Reader,
    engine: Engine,
    found: Sequence[PageReading],
    spent: Spent,
    rewrites: Rewrites,
) -> None:
    """Go through all pages piece by piece, together."""
    nothing = written_by_nobody(torch.zeros(0, dtype=torch.int64))
    nll: list[list[Tensor]] = [[] for _ in found]
    seen = reader.read([reader.first_piece(r.page) for r in found], spent)
    last = [
        Piece(r.page, 0, reader.piece, nothing, entropy, loss)
        for r, (entropy, loss) in zip(found, seen, strict=True)
    ]
    for reading in found:
        reading.memories.append(nothing)
    cuts = [reader.cuts(reading.page) for reading in found]
    for k in range(max(map(len, cuts), default=0)):
        going = [n for n, own in enumerate(cuts) if k < len(own)]
        _write(reader, engine, [(found[n], last[n]) for n in going], spent, rewrites)
        asked = []
        for n in going:
            first, stop = cuts[n][k]
            page = found[n].page
            behind = reader.behind(page, first)
            memory = as_read(reader.model, found[n].memories[-1])  # begins with the start token
            asked.append((torch.cat([memory, behind[1:]]), page.token_ids[first:stop]))
        for n, (entropy, loss) in zip(going, reader.read(asked, spent), strict=True):
            nll[n].append(loss)
            last[n] = Piece(found[n].page, *cuts[n][k], found[n].memories[-1], entropy, loss)
    for reading, parts in zip(found, nll, strict=True):
        reading.nll["memory"] = torch.cat(parts)


def _write(
    reader: _Reader,
    engine: Engine,
    read: Sequence[tuple[PageReading, Piece]],
    spent: Spent,
    rewrites: Rewrites,
) -> None:
    """Note the memory of the next piece of each page: a new one, or the one before."""
    begun = perf_counter()
    links, where = [], []
    for reading, piece in read:
        writes = rewrites(piece)
        reading.written.append(writes)
        if not writes:
            reading.memories.append(piece.memory)
            continue
        if piece.first:
            before = as_read(reader.model, piece.memory)
            # One token more than the piece: samplers say what they expected there.
            link = piece_behind(reading.page, piece.first, piece.stop + 1, before)
        else:
            link = piece_behind(reading.page, 0, piece.stop + 1, reading.page.token_ids[:0])
        links.append(link)
        where.append(reading)

    def at_the_end(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
        return (len(context) - 1,)

    for reading, rollout in zip(where, engine.sample(links, at_the_end, reader.check), strict=True):
        ((thought,),) = rollout.thoughts
        reading.memories.append(written_by_nobody(thought.content))
        drawn = len(thought.sampled_ids)
        spent.computed += rollout.positions[0] + drawn
        spent.held = max(spent.held, rollout.positions[0] + drawn)
    spent.seconds += perf_counter() - begun
