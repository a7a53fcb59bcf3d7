"""Calls of tools by fixed rules: what a model that has never called is taught from.

A rule is a pure function of what stands before a position to calls as a thought would write them.
Another one is a function here with a line in `PROPOSALS`, or anywhere:

    @PROPOSALS.register("titles")
    def titles(before: Before) -> list[str]:
        return ["search " + before.text.partition("\\n")[0]]
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rntp.registry import Registry
from rntp.tools.sessions import session_programs
from rntp.tools.words import words

QUERY_WORDS = 12  # of `last_words`
RARE_WORDS = 5
# Words before the position among which `rare_words` looks, and characters for `expression`.
NEAR_WORDS = 120
NEAR_CHARACTERS = 600
MOST_EXPRESSIONS = 3

_EXPRESSION = re.compile(
    r"(?<![\w.])\(*-?\d+(?:\.\d+)?\)*(?:\s?(?:\*\*|//|[-+*/%])\s?\(*-?\d+(?:\.\d+)?\)*)+(?![\w.])"
)


@dataclass(frozen=True, slots=True)
class Before:
    """What a rule may know: nothing from the position on.

    text: of the page before the position. documents: of how many pages of a sample each word is,
    casefolded; what is missing is of none.
    """

    text: str
    documents: Mapping[str, int] = field(default_factory=dict)


Proposal = Callable[[Before], list[str]]
PROPOSALS: Registry[Proposal] = Registry("proposal")


@PROPOSALS.register("last_words")
def last_words(before: Before) -> list[str]:
    """Search with the last words before the position, as they stand there."""
    found = before.text.split()[-QUERY_WORDS:]
    return ["search " + " ".join(found)] if words(" ".join(found)) else []


@PROPOSALS.register("rare_words")
def rare_words(before: Before) -> list[str]:
    """Search with the words nearby that the fewest pages have, in the page's order. Numbers are
    none of them."""
    nearby = [w for w in words(before.text)[-NEAR_WORDS:] if len(w) > 2 and w.isalpha()]
    latest = {word: n for n, word in enumerate(nearby)}
    rarest = sorted(latest, key=lambda word: (before.documents.get(word, 0), -latest[word]))
    chosen = sorted(rarest[:RARE_WORDS], key=latest.__getitem__)
    return ["search " + " ".join(chosen)] if chosen else []


@PROPOSALS.register("expression")
def expression(before: Before) -> list[str]:
    """Run the interactive session so far, all of it, with the imports that it lacks and without;
    its last example; and compute the last arithmetic expressions nearby. The first word of the
    page may name the module that it is about."""
    calls = session_programs(before.text)
    nearby = before.text[-NEAR_CHARACTERS:]
    found = [match[0] for match in _EXPRESSION.finditer(nearby)]
    calls += reversed(found[-MOST_EXPRESSIONS:])
    return [f"python {code}" for code in dict.fromkeys(call.strip() for call in calls) if code]
