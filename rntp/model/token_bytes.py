"""How many bytes of text a span of token ids stands for.

Bytes are counted, never characters: a piece of a byte-level vocabulary need not be a whole
character, and decoded alone it would show as U+FFFD, which has three bytes of its own. Where a
tokenizer normalises text (NFC), the bytes are those of the normalised text.
"""

import json
import re

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_RAW_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a blank


class ByteCounter:
    """Counts for one tokenizer.

    Byte-level BPE writes one character a byte, and byte fallback writes `<0x0A>` for one, so there
    every id has its number of bytes. All other tokens are whole characters, which decoding gives
    back; what it puts between or cuts off before them is then counted as the decoder has it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._of_id_V = _bytes_of_ids(tokenizer)

    def span(self, ids: Tensor, first: int, stop: int) -> int:
        """Bytes of ids[first:stop]; ids: int64 [L], the text that the span is a part of."""
        if self._of_id_V is not None:
            return int(self._of_id_V[ids[first:stop]].sum())
        # Differences of prefixes, so that nothing is stripped as if the span began a text.
        return self._length(ids[:stop]) - self._length(ids[:first])

    def _length(self, ids: Tensor) -> int:
        text = self._tokenizer.decode(ids.tolist())
        assert isinstance(text, str)
        return len(text.encode("utf-8", "surrogatepass"))


def _bytes_of_ids(tokenizer: PreTrainedTokenizerBase) -> Tensor | None:
    """int64 [V]: bytes of each id; None where tokens are whole characters by construction."""
    kinds = _decoder_kinds(tokenizer)
    if not kinds & {"ByteLevel", "ByteFallback"}:
        return None
    vocabulary = tokenizer.get_vocab()
    verbatim = set(tokenizer.get_added_vocab())
    sizes_V = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.int64)
    for token, i in vocabulary.items():
        if token in verbatim:
            sizes_V[i] = len(token.encode())
        elif "ByteLevel" in kinds:
            sizes_V[i] = len(token)
        elif _RAW_BYTE.fullmatch(token):
            sizes_V[i] = 1
        else:
            sizes_V[i] = len(token.replace(_SPACE, " ").encode())
    return sizes_V


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Names of the steps of its decoder ("ByteLevel", "Fuse", …)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return set()
    spec = json.loads(backend.decoder.__getstate__())
    return {step["type"] for step in (spec, *spec.get("decoders", []))}
