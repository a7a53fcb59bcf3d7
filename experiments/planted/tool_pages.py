"""Pages that ask for what stands on other pages, and for sums: the planted corpus of tools.

A page is a pure function of (seed, index). It names two desks (`Desks: Arlen Bosk.`) and, to be
mistaken for them, two others (`Trail: Cide Dalo.`), and then asks, idle lines in between, for

    needed, another page    a value of its desks (`Value of b is 7.`): a card elsewhere has it
    needed, a sum           of two numbers (`Sum 38 + 29 =67.`), each a token and so its sum
    impossible              a digit that nothing determines (`Reference 5.`)
    easy                    the last word of an idle line

Values are drawn for each corpus, pair of desks and letter, uniformly, and so are the numbers. So a
reader without tools knows nothing of either, and what a right call is worth is known.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from pages import KINDS, LETTERS, MUSINGS, NAMES, PLACES, Writer

from rntp.rng import fraction

HORIZON = 2  # the answer and the full stop
TERMS = 2
LEAST, MOST = 10, 49  # numbers that are added
ASKED = 2  # questions of each kind on a page
TOOL_OPEN, TOOL_CLOSE, RESULT_OPEN, RESULT_CLOSE = "<tool>", "</tool>", "<result>", "</result>"
CLASSES = {
    "s": "needed, another page",
    "c": "needed, a sum",
    "e": "easy",
    "i": "impossible",
}
_SUMS = Counter(map(sum, product(range(LEAST, MOST + 1), repeat=TERMS)))
SUM_NATS = -sum(n / _SUMS.total() * math.log(n / _SUMS.total()) for n in _SUMS.values())
VALUE_NATS = math.log(10)


@dataclass(frozen=True)
class Call:
    """A call as tokens between its markers, and what comes back, as tokens."""

    asks: tuple[str, ...]
    result: tuple[str, ...]

    @property
    def thought(self) -> list[str]:
        """Tokens of a thought that makes it, without the think markers."""
        return [TOOL_OPEN, *self.asks, TOOL_CLOSE, RESULT_OPEN, *self.result, RESULT_CLOSE]


@dataclass(frozen=True)
class Place:
    """Where a call is worth something. index: of the token behind it. call: the right one. gain:
    nats that it is worth to that token."""

    index: int
    call: Call
    gain: float


@dataclass(frozen=True)
class ToolPage:
    """tokens, the class of each (" " where nobody asks), the places, and what the page names:
    pairs of names, its own desks first; letters that it asks for; terms of its sums."""

    tokens: tuple[str, ...]
    classes: str
    places: tuple[Place, ...]
    pairs: tuple[tuple[str, str], ...]
    letters: tuple[str, ...]
    terms: tuple[tuple[int, ...], ...]
    seed: int

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def value(seed: int, names: Sequence[str], letter: str) -> int:
    """What a letter stands for at two desks, in either order: a digit, the same on all pages of a
    corpus."""
    return int(fraction(f"{' '.join(sorted(names))} {letter}", f"value/{seed}") * 10)


def cards(seed: int) -> list[str]:
    """The other pages: one for each pair of desks and letter."""
    return [
        f"{a} {b} {letter} = {value(seed, (a, b), letter)}"
        for a, b in combinations(sorted(NAMES), 2)
        for letter in LETTERS
    ]


def search(seed: int, names: Sequence[str], letter: str) -> Call:
    """Ask for a value, and what the search finds."""
    a, b = sorted(names)
    digit = value(seed, names, letter)
    return Call(
        ("search", f" {names[0]}", f" {names[1]}", f" {letter}"),
        (a, f" {b}", f" {letter}", " =", f" {digit}"),
    )


def add(terms: Sequence[int]) -> Call:
    """Ask for a sum."""
    asks = [f" {terms[0]}"]
    for term in terms[1:]:
        asks += [" +", f" {term}"]
    return Call(("python", *asks), (str(sum(terms)),))


def numbers(random: np.random.Generator) -> tuple[int, ...]:
    """Draw numbers to add."""
    return tuple(random.integers(LEAST, MOST + 1, size=TERMS).tolist())


def make_tool_page(seed: int, index: int) -> ToolPage:
    """Make page number `index` of the corpus `seed`."""
    w = Writer(np.random.Generator(np.random.Philox(key=seed, counter=[0, 3, 0, index])))
    w.choose(PLACES, "")
    w.choose(KINDS)
    w.put("\n")
    names = [NAMES[i] for i in w.random.permutation(len(NAMES))[:4]]
    pairs = ((names[0], names[1]), (names[2], names[3]))
    lines = [("Desks:", pairs[0]), ("Trail:", pairs[1])]
    for n in w.random.permutation(2):
        word, (a, b) = lines[n]
        w.put(f"{word} {a} {b}.\n")
    letters = tuple(LETTERS[i] for i in w.random.permutation(len(LETTERS))[:ASKED])
    terms = tuple(numbers(w.random) for _ in range(ASKED))
    classes: dict[int, str] = {}
    places: list[Place] = []

    def here(label: str, call: Call | None = None, gain: float = 0.0) -> None:
        classes[len(w.tokens)] = label
        if call:
            places.append(Place(len(w.tokens), call, gain))

    order = w.random.permutation(np.repeat([0, 1], ASKED)).tolist()
    met = [0, 0]
    for n, kind in enumerate((*order, 2)):
        if n % 2 == 0:
            idle, last = MUSINGS[int(w.random.integers(len(MUSINGS)))].rsplit(" ", 1)
            w.put(f"- {idle}")
            here("e")
            w.put(f" {last}.\n")
        if kind == 2:
            w.put("Reference")
            here("i")
            w.put(f" {w.random.integers(10)}.\n")
            continue
        number = met[kind]
        met[kind] += 1
        if kind == 0:
            letter = letters[number]
            w.put(f"Value of {letter} is")
            here("s", search(seed, pairs[0], letter), VALUE_NATS)
            w.put(f" {value(seed, pairs[0], letter)}.\n")
        else:
            call = add(terms[number])
            w.tokens += ["Sum", *call.asks[1:], " ="]  # numbers are whole here
            here("c", call, SUM_NATS)
            w.tokens += [str(sum(terms[number])), ".", "\n"]
    text = "".join(classes.get(i, " ") for i in range(len(w.tokens)))
    return ToolPage(tuple(w.tokens), text, tuple(places), pairs, letters, terms, seed)
