"""What stands between a branch that calls a tool and the desk that runs it: texts and ids.

A call is read from ids to text, and its outcome goes from text to ids; nothing else of a thought is
decoded or encoded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import LanguageModel
from rntp.model.tokenizer import decode, encode
from rntp.tools import REGISTRY, Page, Tool, Withheld
from rntp.tools.cache import Cache
from rntp.tools.desk import Ask, Desk
from rntp.tools.page import Outcome, split_call
from rntp.tools.splice import result_ids
from rntp.types import Context, Thought, ToolCall

TOO_MANY = Outcome("", "", "too_many_calls")
"""Of a call that gets no result at all."""


@dataclass(frozen=True)
class ToolCalls:
    """Takes the calls of thoughts.

    calls: of one thought, at most. result_tokens: of a result, without its markers. horizon: tokens
    behind the position that a thought is judged by, and that are withheld from it. window: tokens
    before the position that are read beside a thought; None: all. opening: ids that every thought
    begins with, a call up to its arguments; empty where thoughts begin as they like.
    """

    model: LanguageModel
    desk: Desk
    calls: int
    result_tokens: int
    horizon: int
    window: int | None = None
    opening: tuple[int, ...] = ()

    @property
    def most_given(self) -> int:
        """Most tokens of a thought that are not drawn."""
        return self.calls * (self.result_tokens + 2) + len(self.opening)

    def ask(self, call: Sequence[int], context: Context, position: int) -> Ask:
        """Hand in a call. call: the ids between its markers. position: in the context's tokens."""
        page, withheld = self._page(context, position)
        return self.desk.ask(self._text(torch.tensor(call, dtype=torch.int64)), page, withheld)

    def result(self, outcome: Outcome) -> list[int]:
        """Ids that go on the thought, with both markers of a result."""
        model = self.model
        _, _, opening, closing = model.tool_ids
        ids = result_ids(
            outcome.text,
            partial(encode, model.tokenizer),
            opening=opening,
            closing=closing,
            budget=self.result_tokens,
            special={
                *model.tool_ids,
                *(model.think_open_id, model.think_close_id),
                *model.tokenizer.all_special_ids,
            },
        )
        found: list[int] = ids.tolist()
        return found

    def thought(self, call: Tensor, outcome: Outcome) -> Thought:
        """Make a thought of a call that nobody drew and its result. call: int64 ids, without
        markers."""
        opening, closing = call.new_tensor(self.model.tool_ids[:2]).split(1)
        result = call.new_tensor(self.result(outcome))
        ids = torch.cat([opening, call, closing, result])
        given = torch.arange(len(ids)) >= len(ids) - len(result)
        calls = (self.record(call.tolist(), outcome),)
        return Thought(ids, torch.zeros(len(ids)), closed=False, given=given, calls=calls)

    def record(self, call: Sequence[int], outcome: Outcome, *, cut: bool = False) -> ToolCall:
        """What a rollout keeps of a call. call: the ids between its markers. cut: the budget has
        ended it, so that it has no closing one."""
        name, arguments = split_call(self._text(torch.tensor(call, dtype=torch.int64)))
        has_result = outcome is not TOO_MANY
        return ToolCall(
            name,
            arguments,
            outcome.text,
            outcome.failure,
            dict(outcome.withheld),
            asked=(len(call) + 2 - cut) * has_result,
        )

    def _page(self, context: Context, position: int) -> tuple[Page, Withheld]:
        """What a tool may know of the bare page, and what is withheld from the thought."""
        withheld = withheld_at(self.model, context, position, self.horizon)
        at = position - context.shift
        ids = bare_ids(context)[:at]
        lost = "" if self.window is None else self._text(ids[: max(at - self.window, 0)])
        page = Page(context.document_id, at, withheld.before, tuple(ids.tolist()), lost)
        return page, withheld

    def _text(self, ids: Tensor) -> str:
        return decode(self.model.tokenizer, ids)


def withheld_at(model: LanguageModel, context: Context, position: int, horizon: int) -> Withheld:
    """What a thought must not be shown that is judged by so many tokens behind its position."""
    ids, at = bare_ids(context), position - context.shift

    def text(part: Tensor) -> str:
        return decode(model.tokenizer, part)

    return Withheld(
        context.document_id,
        page=text(ids),
        before=text(ids[:at]),
        continuation=text(ids[at : at + horizon]),
    )


def bare_ids(context: Context) -> Tensor:
    """The page's own tokens, int64: with those that were left behind, and without the thoughts that
    stand before a position."""
    pieces, begin, shift = [context.left], 0, -len(context.left)
    for seen in context.seen:
        at = seen.position + shift
        pieces.append(context.token_ids[begin:at])
        shift += len(seen.token_ids)
        begin = at + len(seen.token_ids)
    return torch.cat([*pieces, context.token_ids[begin:]])


def opening_ids(model: LanguageModel, tool: str | None) -> tuple[int, ...]:
    """Ids that thoughts begin with which call this tool from the start.

    A line break ends the name: what words follow it is then as likely as at the start of any text.
    """
    if tool is None:
        return ()
    return model.tool_ids[0], *encode(model.tokenizer, f"{tool}\n").tolist()


def open_tools(config: Config) -> dict[str, Tool]:
    """Open the tools that a config names. Raises ConfigError or DataError, each with the remedy."""
    found: dict[str, Tool] = {}
    for name, settings in config.thought.tools.use.items():
        try:
            found[name] = REGISTRY[name](**(settings or {}))
        except TypeError as error:
            raise ConfigError(
                f"thought.tools.use: {name} cannot be opened with {settings or {}} ({error}); see "
                "the documentation of its settings"
            ) from error
    return found


def check_tools(config: Config) -> None:
    """Raise as `open_tools` does, before anything costs time; nothing stays open."""
    for tool in open_tools(config).values():
        tool.close()


@contextmanager
def serving(
    engine: object, model: LanguageModel, config: Config, folder: Path | None = None, rank: int = 0
) -> Iterator[None]:
    """Let an engine's thoughts call the tools of a config, until the context is left.

    folder: where outcomes are kept for a resume; None keeps them in memory. Nothing is done where
    the config names no tools. Raises ConfigError or DataError where a tool cannot be opened.
    """
    inner = _innermost(engine)
    if not config.thought.tools.use or not hasattr(inner, "tools"):
        yield
        return
    with tool_calls(model, config, folder, rank) as calls:
        inner.tools = calls
        try:
            yield
        finally:
            inner.tools = None


def waiting_metrics(engine: object) -> dict[str, float]:
    """What a step's record says of waiting for tools since the last one; nothing where the engine
    serves none."""
    tools: ToolCalls | None = getattr(_innermost(engine), "tools", None)
    if tools is None:
        return {}
    waited_s, tools.desk.waited_s = tools.desk.waited_s, 0.0
    return {"time/tools_s": waited_s}


def _innermost(engine: object) -> Any:
    while hasattr(engine, "inner"):
        engine = engine.inner
    return engine


@contextmanager
def tool_calls(
    model: LanguageModel, config: Config, folder: Path | None = None, rank: int = 0
) -> Iterator[ToolCalls]:
    """Open the tools of a config, and close them when the context is left. Arguments and errors as
    of `serving`."""
    section = config.thought.tools
    desk = Desk(
        open_tools(config), Cache(folder, rank), seconds=section.seconds, workers=section.workers
    )
    try:
        yield ToolCalls(
            model,
            desk,
            section.calls,
            section.result_tokens,
            config.reward.horizon,
            config.reading.window,
            opening_ids(model, section.opening),
        )
    finally:
        desk.close()
