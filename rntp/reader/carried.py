"""A text read piece by piece with a carried memory: what it held, and what that gave."""

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from rntp.config import Config
from rntp.evaluation.page_reading import Piece, read_pages
from rntp.model import LanguageModel
from rntp.model.tokenizer import decode
from rntp.reader.page import ReadPage, ReadThought
from rntp.reader.when import Here, When
from rntp.types import Context


def read_by_pieces(model: LanguageModel, config: Config, ids: Tensor, when: When) -> ReadPage:
    """Read a text of any length in pieces, with the memory of what stood before.

    A memory stands where it was written, at the end of a piece; it is judged by the next piece,
    read behind it and the last tokens before, and behind these tokens alone. ids: int64. The rule
    is asked at the ends of pieces; the entropy that it sees is the mean over the piece, and it sees
    no hidden state.
    """
    length = config.reading.piece
    assert length is not None
    if len(ids) <= length:
        return ReadPage([decode(model.tokenizer, ids)], [], len(ids))
    written, expected = [0], list[float]()

    def rewrites(piece: Piece) -> bool:
        entropy = piece.entropy_W.mean()
        expected.append(float(entropy))
        writes = bool(when(Here(entropy, piece.stop - written[-1], torch.zeros(0))))
        if writes:
            written.append(piece.stop)
        return writes

    page = Context(0, "text", ids)
    (found,), _ = read_pages(model, [page], config, arms=("window", "memory"), rewrites=rewrites)
    gains = (found.nll["window"] - found.nll["memory"]).split(length)
    starts = accumulate([length] * len(gains))
    thoughts = [
        ReadThought(
            position=start,
            text=decode(model.tokenizer, memory.content),
            token_ids=memory.content.tolist(),
            closed=len(memory.content) < config.thought.thought_tokens,
            num_tokens=len(memory.content),
            entropy=entropy,
            gain_per_token=gain.tolist(),
        )
        for start, gain, memory, new, entropy in zip(
            starts, gains, found.memories[1:], found.written, expected, strict=True
        )
        if new
    ]
    cuts = [0, *(thought.position for thought in thoughts), len(ids)]
    pieces = [decode(model.tokenizer, ids[a:b]) for a, b in pairwise(cuts)]
    return ReadPage(pieces, thoughts, len(ids))
