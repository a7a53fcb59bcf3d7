"""Pages whose first lines are needed far behind: the planted corpus of memories.

A page is a pure function of (seed, index). Its facts (`- b = 3`) stand at the start, idle lines
follow, and then it asks for some of them (`Value of b is 3.`). Behind a window that is shorter than
the idle lines a reader knows nothing of the facts, so a memory is worth an exact number of nats. A
page is of one kind:

    needed         it asks for one fact of few
    more than fits it has more facts than a memory holds, and asks often for those that it marks;
                   the memory is written before the question, which is part of the continuation
    changed        a fact is given again, otherwise: the newest counts

and ends, whatever its kind, with a question whose fact stands in the window (`nothing lost`).
Digits are drawn independently and uniformly, so that a window alone leaves log 10 nats to each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pages import KINDS, LEGENDS, LETTERS, MUSINGS, PLACES, Writer

WINDOW = 12  # tokens of the page, which never reach from an answer back to another fact or answer
HORIZON = 6  # `Value of b is 3.`, or the answer and the next line's beginning
ROOM = 3  # facts that a memory of 6 tokens holds
FEW, MANY = 4, 8
OFTEN = 0.9  # share of the questions of `more than fits` that are for the marked facts
CLASSES = {
    "n": "needed",
    "m": "more than fits",
    "c": "changed",
    "w": "nothing lost",
    "i": "idle",
}


@dataclass(frozen=True)
class Place:
    """Where a memory is worth something. index: of the token behind it. memory: the best one, as
    text. gain: nats that it is worth to the continuation of HORIZON tokens; it can be below 0 where
    the best choice was not asked for."""

    index: int
    memory: str
    gain: float


@dataclass(frozen=True)
class MemoryPage:
    """tokens, the class of each (" " where nobody asks), and the places."""

    tokens: tuple[str, ...]
    classes: str
    places: tuple[Place, ...]

    @property
    def text(self) -> str:
        return "".join(self.tokens)


class _Marks:
    """Classes of a page's tokens by index, and its places."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.classes: dict[int, str] = {}
        self.places: list[Place] = []

    def here(self, label: str, memory: str = "", gain: float = 0.0) -> None:
        """The next token is of this class; with a memory it is a place."""
        index = len(self.writer.tokens)
        self.classes[index] = label
        if memory:
            self.places.append(Place(index, memory, gain))


def make_memory_page(seed: int, index: int) -> MemoryPage:
    """Make page number `index` of the corpus `seed`."""
    w = Writer(np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, 0, index])))
    marks = _Marks(w)
    w.choose(PLACES, "")
    w.choose(KINDS)
    w.put("\nHome | News | Contact\n")
    w.choose(LEGENDS, "")
    w.put("\n")
    kind = "nmc"[int(w.random.integers(3))]
    letters = [LETTERS[i] for i in w.random.permutation(len(LETTERS))]
    facts = {
        letter: int(w.random.integers(10)) for letter in letters[: MANY if kind == "m" else FEW]
    }
    marked = letters[:ROOM]
    for letter in w.random.permutation(list(facts)).tolist():
        w.put(f"{'Next' if kind == 'm' and letter in marked else '-'} {letter} = {facts[letter]}\n")
    if kind == "c":
        changed = letters[0]
        facts[changed] = (facts[changed] + 1 + int(w.random.integers(9))) % 10
        w.put(f"- {changed} = {facts[changed]}\n")
    for _ in range(2):
        _idle(marks, 3)
        _ask(marks, kind, facts, letters, marked)
    _idle(marks, 1)
    letter = letters[-1]
    digit = int(w.random.integers(10))
    w.put(f"- {letter} = {digit}\nValue of {letter} is")
    marks.here("w")
    w.put(f" {digit}.\n")
    _idle(marks, 1)
    classes = "".join(marks.classes.get(i, " ") for i in range(len(w.tokens)))
    return MemoryPage(tuple(w.tokens), classes, tuple(marks.places))


def _idle(marks: _Marks, lines: int) -> None:
    """Lines that say nothing."""
    for n in range(lines):
        if n == 1:
            marks.here("i")
        text = MUSINGS[int(marks.writer.random.integers(len(MUSINGS)))]
        marks.writer.put(f"-{' ' + text}.\n")


def _ask(
    marks: _Marks, kind: str, facts: dict[str, int], letters: Sequence[str], marked: Sequence[str]
) -> None:
    """A question, and what a memory before it, or before its answer, is worth."""
    w = marks.writer
    if kind != "m":
        letter = letters[0] if kind == "c" else letters[int(w.random.integers(FEW))]
        w.put(f"Value of {letter} is")
        marks.here(kind, f" {letter} {facts[letter]}", math.log(10))
        w.put(f" {facts[letter]}.\n")
        return
    often = w.random.random() < OFTEN
    options = marked if often else letters[ROOM:MANY]
    letter = options[int(w.random.integers(len(options)))]
    # The window alone: any letter, any digit. With the marked facts: of these, OFTEN, and their
    # digits; of the other letters, which the memory does not tell apart, the rest.
    rest = len(LETTERS) - ROOM
    gain = math.log(len(LETTERS)) + (
        math.log(OFTEN / ROOM) + math.log(10) if often else math.log((1 - OFTEN) / rest)
    )
    marks.here(kind, "".join(f" {x} {facts[x]}" for x in marked), gain)
    w.put(f"Value of {letter} is {facts[letter]}.\n")
