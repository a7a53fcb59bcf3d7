"""Pages in which every token has a known class: the planted corpus' generator.

A page is a pure function of (seed, index). It reads like a small web page: a title, a navigation
bar, a table of records, a breadcrumb trail, opening hours, a reference number, and questions with
their answers. Each token is one of

    easy         determined by the page so far, and one look-up at most finds it
    thinkable    determined by the page so far, but only through two or more look-ups in a row
    impossible   drawn uniformly from options that are the same on all pages: noise
    chosen       drawn uniformly from what the page leaves: names on it, letters not used yet. To
                 read it narrows the choice down, and no thought does more
    left         the one option that earlier choices leave
    memorisable  a fixed fact, the same on all pages

with its exact entropy in nats. Random choices go through `Writer.choose` and `draw`, so an entropy
is the logarithm of the number of options and nothing is estimated.

Two kinds of question are thinkable. *walk*: the records map names to names in one single cycle
(`Arlen > Bosk`), and the page asks where so many steps from a name lead. *assign*: letters stand
for digits or for earlier letters (`a = 7`, `d = a`, `g = d`), and the page asks for their values.

The entropy without a thought is that of a reader who can do one look-up, forwards or backwards,
but not two in a row: for a walk in a cycle of n names, uniform over the n - 3 names that are
neither the start nor beside it; for an assignment, uniform over the digits the chains end in. With
the oracle thought, which writes the start and every look-up down, it is 0.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

TOKEN = re.compile(r"\n| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]")

NAMES = [
    "Arlen",
    "Bosk",
    "Cide",
    "Dalo",
    "Erin",
    "Fenn",
    "Gorse",
    "Hale",
    "Iver",
    "Joss",
    "Kemp",
    "Lorn",
    "Mure",
    "Nash",
    "Orme",
    "Pell",
    "Quay",
    "Rusk",
    "Sorel",
    "Tarn",
    "Ulver",
    "Venn",
    "Wick",
    "Yarrow",
]
LETTERS = ["a", "b", "c", "d", "e", "f", "g", "h", "j", "k", "m", "n"]
ROOTS = 3  # letters that stand for a digit themselves; as many letters lead to each
PLACES = ["Harbour", "Market", "River", "Garden", "Station", "Museum", "Library", "Theatre"]
KINDS = ["guide", "news", "rota", "index", "notes", "report"]
COLOURS = ["red", "blue", "green", "white", "black", "grey"]
THINGS = ["gate", "desk", "hall", "tower", "bridge", "office"]
INTROS = (
    "This page lists who passes the post on to whom.",
    "Please find below how parcels are handed on.",
    "Our desks work in a ring and every desk has one heir.",
    "Here is the order of the watch for the week.",
)
WALKS = 0.7  # share of the pages whose questions are walks
# Entropy of that choice, which the first word of the introduction gives away.
_LAYOUT_NATS = -WALKS * math.log(WALKS) - (1 - WALKS) * math.log(1 - WALKS)
STEPS = {1: "Next", 2: "Two", 3: "Three", 4: "Four", 5: "Five"}
LEGENDS = (
    "The letters on the map stand for these gates.",
    "Every sign on the door means one of these.",
    "Signs on our map are short for the numbers below.",
)
MUSINGS = (
    "the sea is calm today",
    "please find the order of the week",
    "our post is on the page",
    "who works in the hall",
    "every office is below the tower",
)
CLASSES = {
    "e": "easy",
    "1": "one look-up",
    "2": "thinkable, 2 hops",
    "3": "thinkable, 3 hops",
    "4": "thinkable, 4 hops",
    "5": "beyond training, 5 hops",
    "m": "memorisable",
    "i": "impossible",
    "p": "chosen from the page",
    "x": "left by elimination",
}


@dataclass(frozen=True)
class Question:
    """A thinkable token: where it is, the look-ups to it, and what they leave to guess.

    thought: tokens of the oracle thought: the start, and each look-up up to the answer.
    nats_without: entropy for a reader who can do one look-up; with the oracle thought it is 0.
    """

    index: int
    hops: int
    kind: str
    thought: tuple[str, ...]
    nats_without: float


@dataclass(frozen=True)
class Page:
    """tokens, and for each its label (see CLASSES) and entropy in nats for that reader.

    trails: from every name or letter of the records, where the look-ups lead.
    """

    tokens: tuple[str, ...]
    labels: str
    nats: tuple[float, ...]
    questions: tuple[Question, ...]
    trails: Mapping[str, tuple[str, ...]]

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def title(self) -> str:
        return self.text.partition("\n")[0]


@dataclass
class Writer:
    """Collects a page's tokens with their labels and entropies."""

    random: np.random.Generator
    tokens: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def put(self, text: str, label: str = "e", nats: float = 0.0) -> None:
        """Append text; its first token carries the label and the entropy, the rest follows."""
        first, *rest = split(text)
        self.tokens += [first, *rest]
        self.labels += [label, *("e" * len(rest))]
        self.nats += [nats, *([0.0] * len(rest))]

    def choose(self, options: Sequence[str], prefix: str = " ", nats_before: float = 0.0) -> str:
        """Append one of the options, the same on all pages, drawn uniformly. Their first tokens
        must differ.

        nats_before: entropy of an earlier choice that this one gives away.
        """
        chosen = options[int(self.random.integers(len(options)))]
        self.put(prefix + chosen, "i", nats_before + math.log(len(options)))
        return chosen

    def draw(self, text: str, options: int, of: int = 0) -> None:
        """Append what was drawn uniformly from as many options as the page leaves.

        of: options on all pages, where the page takes some away; all of them left is noise.
        """
        label = "x" if options == 1 else "i" if options == of else "p"
        self.put(text, label, math.log(options))

    def answer(self, kind: str, start: str, path: Sequence[str], nats_without: float) -> None:
        """Append the last of the look-ups from a start: the answer to the question just put."""
        hops = len(path)
        if hops == 1:
            self.put(path[0], "1")
            return
        thought = (start, *path)
        self.questions.append(Question(len(self.tokens), hops, kind, thought, nats_without))
        self.put(path[-1], str(hops), nats_without)


def split(text: str) -> list[str]:
    """Tokens of a text; joined they are the text again."""
    return TOKEN.findall(text)


def fact(colour: int, thing: int) -> tuple[int, int]:
    """The opening hours of a place, two digits: the same on all pages."""
    return (3 * colour + 7 * thing + 2) % 10, (5 * colour + 3 * thing + colour * thing) % 10


def make_page(
    seed: int,
    index: int,
    *,
    hops: Sequence[int] = (2, 3, 4),
    names: int = 10,
    trails: int = 2,
    questions: int = 5,
) -> Page:
    """Page number `index` of the corpus `seed`, a pure function of the arguments.

    hops: the difficulties it may ask. names: records of a walk (the cycle's length). trails,
    questions: lines of each.
    """
    w = Writer(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, index])))
    w.choose(PLACES, "")
    w.choose(KINDS)
    w.put("\n")
    w.put("Home | News | Contact\n")
    if w.random.random() < WALKS:
        paths = _walk(w, hops, names, trails, questions)
    else:
        paths = _assign(w, max(hops), trails, questions)
    return Page(tuple(w.tokens), "".join(w.labels), tuple(w.nats), tuple(w.questions), paths)


def _walk(
    w: Writer, hops: Sequence[int], names: int, trails: int, questions: int
) -> dict[str, tuple[str, ...]]:
    """Records in one cycle, trails along it, and questions of several steps."""
    w.choose(INTROS, "", _LAYOUT_NATS - (1 - WALKS) * math.log(len(INTROS) / len(LEGENDS)))
    w.put("\n")
    w.put("Desks:")
    listed = [NAMES[i] for i in w.random.permutation(len(NAMES))[:names]]
    for i, name in enumerate(listed):
        w.draw(f" {name}", len(NAMES) - i, of=len(NAMES))
    w.put(".\n")
    cycle = [listed[i] for i in w.random.permutation(names)]
    at = {name: i for i, name in enumerate(cycle)}

    def path(name: str, steps: int) -> list[str]:
        return [f" {cycle[(at[name] + k) % names]}" for k in range(1, steps + 1)]

    for i, name in enumerate(listed, 1):
        # Any name not used yet may follow, less the one that would close the cycle early.
        w.put(f"- {name} >")
        w.draw(path(name, 1)[0], max(names - i, 1))
        w.put("\n")
    _extras(w)

    options = (1, *hops)
    asked: dict[tuple[int, str], str] = {}
    for _ in range(questions):
        steps = options[int(w.random.integers(len(options)))]
        start = listed[int(w.random.integers(names))]
        w.put(f"{STEPS[steps]} after", "i", math.log(len(options)))
        w.draw(f" {start}", names)
        w.put(" is")
        way = path(start, steps)
        # Ruled out by one look-up: the start, its neighbours, and what has been the answer to as
        # many steps from elsewhere.
        ruled_out = {f" {start}", *path(start, 1), *path(start, names - 1)[-1:]}
        ruled_out |= {answer for (n, _), answer in asked.items() if n == steps}
        known = (steps, start) in asked
        w.answer(
            "walk",
            f" {start}",
            way[-1:] if known else way,
            math.log(max(names - len(ruled_out), 1)),
        )
        asked[steps, start] = way[-1]
        w.put(".\n")
    for _ in range(trails):
        start = listed[int(w.random.integers(names))]
        w.put("Trail:")
        w.draw(f" {start}", names)
        for name in path(start, 4):
            w.put(name, "1")
        w.put(".\n")
    return {f" {name}": tuple(path(name, 5)) for name in listed}


def _assign(w: Writer, most: int, trails: int, questions: int) -> dict[str, tuple[str, ...]]:
    """Letters that stand for digits or for earlier letters, at most `most` look-ups deep."""
    w.choose(LEGENDS, "", _LAYOUT_NATS + WALKS * math.log(len(INTROS) / len(LEGENDS)))
    w.put("\n")
    digits = [str(d) for d in w.random.permutation(10)[:ROOTS]]
    per_root = len(LETTERS) // ROOTS
    path: dict[str, tuple[str, ...]] = {}
    members: list[list[str]] = [[] for _ in digits]
    for i, letter in enumerate(LETTERS):
        w.put(f"- {letter} =")
        if i < ROOTS:
            root, path[letter] = i, (f" {digits[i]}",)
            w.draw(path[letter][0], 10 - i, of=10)
        else:
            open_groups = [group for group in members if len(group) < per_root]
            options = [x for group in open_groups for x in group if len(path[x]) < most]
            other = options[int(w.random.integers(len(options)))]
            root = next(r for r, group in enumerate(members) if other in group)
            path[letter] = (f" {other}", *path[other])
            w.draw(f" {other}", len(options))
        members[root].append(letter)
        w.put("\n")
    _extras(w)
    for asked in range(questions):
        # The root first, so that the answers before say nothing of this one.
        if not all(members):
            break
        nats = math.log(ROOTS) + float(np.mean([math.log(len(group)) for group in members]))
        group = members[int(w.random.integers(ROOTS))]
        letter = group.pop(int(w.random.integers(len(group))))
        w.put("Value of")
        w.put(f" {letter}", "p" if asked else "i", nats)
        w.put(" is")
        w.answer("assign", f" {letter}", path[letter], math.log(ROOTS))
        w.put(".\n")
    for _ in range(trails):
        letter = LETTERS[int(w.random.integers(len(LETTERS)))]
        w.put("Trail:")
        w.draw(f" {letter}", len(LETTERS), of=len(LETTERS))
        for entry in path[letter]:
            w.put(entry, "1")
        w.put(".\n")
    return {f" {letter}": way for letter, way in path.items()}


def _extras(w: Writer) -> None:
    """A reference number, which is noise, and opening hours, which are the same everywhere."""
    w.put("Reference")
    for _ in range(5):
        w.put(f" {w.random.integers(10)}", "i", math.log(10))
    w.put(".\n")
    w.put("The")
    colour = COLOURS.index(w.choose(COLOURS))
    thing = THINGS.index(w.choose(THINGS))
    w.put(" opens at")
    for digit in fact(colour, thing):
        w.put(f" {digit}", "m")
    w.put(".\n")
