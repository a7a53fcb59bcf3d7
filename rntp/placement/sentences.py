"""Where sentences begin, by token: a table over the vocabulary, so that no text is cut apart."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.model.tokenizer import token_strings

STOPS = (".", "!", "?", "…", "。", "！", "？")
CLOSERS = "\"')]}»”’"


class SentenceStarts:
    """A token begins a sentence if it follows a line break, or a stop and then a space.

    So "3.5" holds no beginning. "Dr. Smith" does: a rule of thumb, as it says in the trade.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        pieces = token_strings(tokenizer, torch.arange(len(tokenizer)))
        bare = [piece.rstrip(" ") for piece in pieces]
        self._line = torch.tensor([piece.endswith("\n") for piece in bare])
        self._stop = torch.tensor([b.rstrip(CLOSERS).endswith(STOPS) for b in bare])
        self._spaced = torch.tensor([piece[:1].isspace() for piece in pieces])
        self._blank = torch.tensor([not piece.strip() for piece in pieces])

    def of(self, token_ids: Tensor) -> Tensor:
        """bool [L]; the first token of a window is never one, for nothing is known before it."""
        before, ids = token_ids[:-1], token_ids[1:]
        starts = (self._line[before] | (self._stop[before] & self._spaced[ids])) & ~self._blank[ids]
        return torch.cat([starts.new_zeros(1), starts])
