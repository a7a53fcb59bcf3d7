"""Pages of documentation as text that keeps its code, cut to pieces around interactive examples.

A page is the first section that its heading stands in. Prose is a line a paragraph, code stands as
it was written, and an empty line is between any two of them. A piece begins with the page's title,
goes on with what stands before an output that no piece before it asks for, and has one context's
tokens at most:

    math — Mathematical functions
    ⏎
    Return the square root. ⏎
    ⏎
    >>> math.sqrt(9)
    3.0                       <- class `output` stands at the 3
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import accumulate

from rntp.tools.sessions import Example, examples_of

Begins = Callable[[str], list[int]]
"""Where the tokens of a text begin, in characters."""

_BLOCKS = frozenset(
    (
        *("address", "article", "blockquote", "dd", "div", "dl", "dt", "figure", "h1", "h2", "h3"),
        *("h4", "h5", "h6", "li", "ol", "p", "pre", "section", "table", "tr", "ul"),
    )
)
_SILENT = frozenset(("script", "style"))
_VOID = frozenset(("area", "br", "col", "embed", "hr", "img", "input", "link", "meta", "wbr"))


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, or a block of code."""

    text: str
    code: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """Sizes in tokens. tokens: of a piece, at most. before: of the page before the first output
    that a piece asks for, at most. behind: from an output's first token on, at least."""

    tokens: int
    before: int
    behind: int


@dataclass(frozen=True, slots=True)
class Output:
    """An output that a piece asks for. token: number of its first one. text: all of it, where the
    piece may end before."""

    token: int
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one document, its number of tokens, and the outputs that it asks for. came: numbers
    of the tokens that came of a prompt: of these outputs, of others, and of tracebacks."""

    text: str
    num_tokens: int
    outputs: tuple[Output, ...]
    came: frozenset[int]


def blocks_of(html: str) -> list[Block]:
    """Read a page's first section that has a heading; nothing where there is none."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.blocks


def pieces_of(blocks: Sequence[Block], begins: Begins, cut: Cut) -> list[Piece]:
    """Cut a page. Each output is asked for once at most: tracebacks are not, nor one that begins
    amid a token."""
    title = blocks[0].text.partition("\n")[0] + "\n\n"
    text = "\n\n".join(block.text for block in blocks)
    examples, places = list(examples_of(text)), begins(text)
    starts = _starts(blocks, examples)
    pieces: list[Piece] = []
    done = 0  # characters whose outputs have been asked for, or cannot be
    for example in examples:
        if not example.output or example.raised or example.begin < done:
            continue
        # From a paragraph or an example on, at the latest from this one.
        earliest = places[max(bisect_left(places, example.begin) - cut.before, 0)]
        begin = min(starts[bisect_left(starts, min(earliest, example.start))], example.start)
        head = title if begin else ""
        written, numbers = _fitted(head + text[begin : begin + 8 * cut.tokens], begins, cut.tokens)
        shift = begin - len(head)
        last = numbers[max(len(numbers) - cut.behind, 0)] + shift
        outputs = [
            Output(token, e.output)
            for e in examples
            if e.output and not e.raised and example.begin <= e.begin <= last
            if numbers[token := bisect_left(numbers, e.begin - shift)] == e.begin - shift
        ]
        done = max(last, example.begin) + 1
        if outputs:
            spans = [
                range(*(bisect_left(numbers, x - shift) for x in (e.begin, e.end)))
                for e in examples
                if begin < e.begin < shift + len(written)
            ]
            came = frozenset(n for span in spans for n in span)
            pieces.append(Piece(written, len(numbers), tuple(outputs), came))
    return pieces


def _starts(blocks: Sequence[Block], examples: Sequence[Example]) -> list[int]:
    """Where the paragraphs and examples of a page begin, in characters, ascending."""
    lengths = accumulate((len(block.text) + 2 for block in blocks[:-1]), initial=0)
    return sorted({*lengths, *(e.start for e in examples)})


def _fitted(text: str, begins: Begins, most: int) -> tuple[str, list[int]]:
    """As much of a text as has `most` tokens, and where they begin."""
    places = begins(text)
    while len(places) > most:  # once more where the new end is cut into other tokens
        text = text[: places[most]].rstrip("\n")
        places = begins(text)
    return text, places


class _Reader(HTMLParser):
    """Collects the blocks of a section."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._open: list[tuple[str, bool]] = []  # tag, and whether its text is left out
        self._section: int | None = None  # how deep the section stands
        self._done = False
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = (dict(attrs).get("class") or "").split()
        if tag in _VOID:
            self._text.append("\n" if tag == "br" else "")
            return
        if self._section is None and (tag == "section" or "section" in classes):
            self._section = len(self._open)
        if tag in _BLOCKS:
            self._flush()
        self._open.append((tag, tag in _SILENT or "headerlink" in classes))

    def handle_endtag(self, tag: str) -> None:
        if all(name != tag for name, _ in self._open):
            return
        if tag in _BLOCKS:
            self._flush()
        elif tag in ("td", "th"):
            self._text.append(" ")
        while self._open.pop()[0] != tag:  # what was left open inside
            pass
        if self._section is not None and len(self._open) <= self._section:
            self._done = True

    def handle_data(self, data: str) -> None:
        inside = self._section is not None and not self._done
        if inside and not any(silent for _, silent in self._open):
            self._text.append(data)

    def close(self) -> None:
        super().close()
        self._flush()

    def _flush(self) -> None:
        code = any(tag == "pre" for tag, _ in self._open)
        text, self._text = "".join(self._text), []
        text = _lines(text) if code else re.sub(r"\s+", " ", text).strip()
        if text:
            self.blocks.append(Block(text, code))


def _lines(text: str) -> str:
    lines = [line.rstrip() for line in text.expandtabs().splitlines()]
    return "\n".join(lines).strip("\n")
