"""A page that was read: where the model thought, what, and what that gained."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rntp.types import ToolCall

_STYLE = (
    "body{font:16px/1.6 sans-serif;max-width:46em;margin:2em auto;padding:0 1em}"
    "main{white-space:pre-wrap}label{cursor:pointer}input:not(:checked)~i{display:none}"
    "b{font-weight:normal;font-size:.8em;padding:0 .3em;margin:0 .2em;border-radius:.3em}"
    ".helps b{background:#cfe8cf}.hurts b{background:#f2d3d0}i{background:#eee;color:#444}"
)


@dataclass(frozen=True)
class ReadThought:
    """A thought before a token of the page.

    position: index of the token. token_ids: of what was thought. gain_per_token: nats of each of
    the next tokens. entropy: nats, of the token without the thought, or the mean over the piece
    that a carried memory was written behind. num_tokens: drawn. closed: by the model. calls: of
    tools, with what came back, which stands in the text, too.
    """

    position: int
    text: str
    token_ids: list[int]
    closed: bool
    num_tokens: int
    entropy: float
    gain_per_token: list[float]
    calls: tuple[ToolCall, ...] = ()

    @property
    def gain(self) -> float:
        """Nats a token, mean over the tokens that the thought was judged by."""
        return sum(self.gain_per_token) / len(self.gain_per_token)


@dataclass(frozen=True)
class ReadPage:
    """pieces: text of the page from thought to thought, one more than thoughts."""

    pieces: list[str]
    thoughts: list[ReadThought]
    num_tokens: int

    def facts(self) -> dict[str, Any]:
        """Sum up: thoughts, their tokens a page token, gain in nats a token, share that helped."""
        gains = [thought.gain for thought in self.thoughts]
        drawn = sum(thought.num_tokens for thought in self.thoughts)
        return {
            "tokens": self.num_tokens,
            "thoughts": len(gains),
            "thought_tokens_per_token": drawn / max(self.num_tokens, 1),
            "gain": sum(gains) / len(gains) if gains else None,
            "helped": sum(gain > 0 for gain in gains) / len(gains) if gains else None,
        }

    def summary(self) -> str:
        """The same as a line."""
        facts = self.facts()
        if not self.thoughts:
            return f"{facts['tokens']} tokens, no thoughts"
        return (
            f"{facts['tokens']} tokens, {facts['thoughts']} thoughts "
            f"({facts['thought_tokens_per_token']:.2f} thought tokens a token), gain "
            f"{facts['gain']:+.3f} nats a token behind them, {facts['helped']:.0%} helped"
        )

    def text(self) -> str:
        """The page with each thought in its place."""
        return "".join(self._parts(lambda t: f" ⟦{_label(t)}: {_flat(t.text)}⟧ ", str))

    def html(self, title: str) -> str:
        """The same as a page of its own; thoughts open at a click."""

        def shown(thought: ReadThought) -> str:
            kind = "helps" if thought.gain > 0 else "hurts"
            return (
                f'<label class="{kind}"><input type="checkbox" hidden><b>{_label(thought)}</b>'
                f"<i>{html.escape(thought.text)} </i></label>"
            )

        body = "".join(self._parts(shown, html.escape))
        name = html.escape(title)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>'
            f"<style>{_STYLE}</style><h1>{name}</h1><p>{html.escape(self.summary())}</p>"
            f"<main>{body}</main></html>\n"
        )

    def _parts(self, show: Any, plain: Any) -> Iterator[str]:
        for piece, thought in zip(self.pieces, [*self.thoughts, None], strict=True):
            yield plain(piece)
            if thought is not None:
                yield show(thought)


def _label(thought: ReadThought) -> str:
    return f"{thought.gain:+.2f}"


def _flat(text: str) -> str:
    return " ".join(text.split())
