"""Which windows of a document the order hands out.

one: a pass gives one window of every document, at a start drawn anew at every ordinal.
all: a pass gives every token once. A document of n tokens is cut into ceil(n / window) pieces whose
lengths differ by one at most, and the order is over pieces.
"""

import numpy as np

from rntp.errors import ConfigError


class Pieces:
    """Documents cut into even pieces, numbered 0 … len-1 in document order.

    num_tokens: int64 [documents]. window: most tokens of a piece. min_tokens: fewest that a piece
    may have; raises ConfigError where an even cut could give fewer.
    """

    def __init__(self, num_tokens: np.ndarray, window: int, min_tokens: int) -> None:
        check_window(window, min_tokens)
        self._num_tokens = num_tokens
        self._pieces = -(-num_tokens // window)
        self._ends = np.cumsum(self._pieces)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, piece: int) -> tuple[int, int, int]:
        """(document, first token, end) of a piece."""
        document = int(np.searchsorted(self._ends, piece, side="right"))
        count = int(self._pieces[document])
        k = piece - (int(self._ends[document]) - count)
        return document, *cut(k, count, int(self._num_tokens[document]))


def check_window(window: int, min_tokens: int) -> None:
    """Raise ConfigError where an even cut into pieces of at most `window` tokens could give fewer
    than min_tokens."""
    # n >= 2 pieces of a document with more than (n - 1) windows: each has at least this many.
    least = (window + 1) // 2
    if min_tokens > least:
        raise ConfigError(
            f"data.windows: all cuts documents into pieces of {least} to {window} tokens, and "
            f"a context needs {min_tokens}; raise data.context_tokens to "
            f"{2 * min_tokens}, or lower placement.min_prefix_tokens or reward.horizon"
        )


def cut(piece: int, count: int, num_tokens: int) -> tuple[int, int]:
    """First token and end of one of `count` even pieces of a document."""
    return piece * num_tokens // count, (piece + 1) * num_tokens // count
