"""A text that grows by tokens, and where a stop text ends it; the work is linear in its length."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rntp.model.tokenizer import decode

_PARTIAL = "\N{REPLACEMENT CHARACTER}"  # what the pieces of a character decode to


class StoppedText:
    """Token ids of one answer. stops: texts that end it and are no part of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._ids: list[int] = []
        self._tail = ""  # the end of the text so far: what a stop text may have begun in
        # The ids before `_read` are in the text; those from `_before` on are decoded along with the
        # next, since what a token reads as depends on the one before it.
        self._before = self._read = 0

    def add(self, token: int) -> bool:
        """Take in a token; whether a stop text stands in the text now."""
        self._ids.append(token)
        if not self._stops:
            return False
        new = self._decode(self._before, len(self._ids))
        if new.endswith(_PARTIAL):
            return False
        grown = new[len(self._decode(self._before, self._read)) :]
        self._before, self._read = self._read, len(self._ids)
        text = self._tail + grown
        self._tail = text[-(self._longest - 1) :] if self._longest > 1 else ""
        return any(stop in text for stop in self._stops)

    def text(self) -> str:
        """Decode the answer, up to its first stop text."""
        whole = self._decode(0, len(self._ids))
        ends = [at for stop in self._stops if (at := whole.find(stop)) >= 0]
        return whole[: min(ends)] if ends else whole

    def _decode(self, start: int, end: int) -> str:
        return decode(self._tokenizer, torch.tensor(self._ids[start:end], dtype=torch.int64))
