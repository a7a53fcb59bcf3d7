"""Pages with explicit scratchpads: the language of thoughts that the base model is born with.

A few pages in a hundred carry scratchpads between the think markers. At a thinkable token some are
right (the oracle thought), more are wrong (a trail from another start, or names in any order),
irrelevant (a line of other words) or, late in pretraining, empty; anywhere else none is right. So
the base can write a right thought and can read one, but does neither reliably, and it can decline
to think.
"""

from dataclasses import dataclass

import numpy as np
from pages import MUSINGS, Page, split

from rntp.rng import fraction

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Mix:
    """Shares of the scratchpads.

    pages: share of the pages that carry any; then every thinkable token has one, `elsewhere` other
    tokens, and `harder` of those that are not easy. right: of those at a thinkable token. trail,
    names, empty: of those that are not right; the rest are other words.
    """

    pages: float = 0.1
    right: float = 0.3
    trail: float = 0.5
    names: float = 0.2
    empty: float = 0.0
    elsewhere: int = 12
    harder: int = 0

    def chosen(self, seed: int, index: int) -> bool:
        """Page `index` carries scratchpads."""
        return fraction(f"{seed}/{index}", "scratchpads") < self.pages


def with_scratchpads(page: Page, seed: int, index: int, mix: Mix) -> list[str]:
    """Tokens of the page with scratchpads among them."""
    random = np.random.Generator(np.random.Philox(key=seed + 1, counter=[0, 0, 0, index]))
    notes: dict[int, list[str]] = {}
    for question in page.questions:
        right = random.random() < mix.right
        notes[question.index] = (
            list(question.thought) if right else _other(page, random, mix, question.thought)
        )
    for place in random.integers(16, len(page.tokens) - 1, size=mix.elsewhere).tolist():
        notes.setdefault(place, _other(page, random, mix))
    hard = [i for i in range(16, len(page.tokens) - 1) if page.labels[i] != "e" and i not in notes]
    for choice in random.integers(len(hard), size=mix.harder).tolist():
        notes.setdefault(hard[choice], _other(page, random, mix))
    tokens: list[str] = []
    for i, token in enumerate(page.tokens):
        if i in notes:
            tokens += [THINK_OPEN, *notes[i], THINK_CLOSE]
        tokens.append(token)
    return tokens


def _other(
    page: Page, random: np.random.Generator, mix: Mix, right: tuple[str, ...] = ()
) -> list[str]:
    """A thought that helps nobody; names in random order are the right ones by chance at most."""
    draw, starts = random.random(), list(page.trails)
    if draw < mix.trail:
        others = [start for start in starts if start not in right[:1]]
        start = others[int(random.integers(len(others)))]
        return [start, *page.trails[start][: int(random.integers(2, 5))]]
    if draw < mix.trail + mix.names:
        return [starts[i] for i in random.permutation(len(starts))[: int(random.integers(2, 6))]]
    if draw < mix.trail + mix.names + mix.empty:
        return []
    line = split(" " + MUSINGS[int(random.integers(len(MUSINGS)))])
    return line[: int(random.integers(2, len(line) + 1))]
