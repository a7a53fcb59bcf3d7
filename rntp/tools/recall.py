"""`recall`: a passage of the same page that stands before the reading window, by BM25."""

from collections import Counter

from rntp.errors import ConfigError
from rntp.tools.okapi import okapi
from rntp.tools.page import Failure, Page
from rntp.tools.registry import REGISTRY
from rntp.tools.words import spans, words


@REGISTRY.register("recall")
class Recall:
    """Search in what a reading window loses of the page: its tokens before the window's first one.

    words: of a passage; passages overlap by half. Nothing from the position on is looked at, nor
    what a reader sees anyhow.
    """

    reads_page = True
    strict = None

    def __init__(self, *, words: int = 24) -> None:
        if words < 2:
            raise ConfigError(f"thought.tools: recall takes 2 words or more, and words is {words}")
        self._words = words
        self.digest = f"recall 1 {words}"

    def __call__(self, arguments: str, page: Page) -> str:
        """Give the passage that shares most with the arguments. Raises Failure where none shares a
        word."""
        found = passages(page.lost, self._words)
        scores = okapi([Counter(words(text)) for text in found], words(arguments))
        if not any(scores):
            raise Failure("nothing_found", "nothing found")
        return found[scores.index(max(scores))]

    def close(self) -> None:
        """Nothing runs."""


def passages(text: str, size: int) -> list[str]:
    """Cut a text into passages of `size` words, every one half over the next; the last ends where
    the text ends. A shorter text is one passage."""
    ends = [0, *(end for _, end in spans(text))]
    last = max(len(ends) - 1 - size, 0)
    starts = dict.fromkeys([*range(0, last, max(size // 2, 1)), last])
    cut = [text[ends[s] : ends[min(s + size, len(ends) - 1)]].strip() for s in starts]
    # What stands behind the last word belongs to the last passage.
    return [*cut[:-1], text[ends[last] :].strip()] if cut else []
