"""Tokenizers: where they come from, plain encoding of web text, and the think markers.

A document is encoded once and its ids are spliced; nothing is decoded and encoded again. Text of
a page that spells a special token (`<|im_end|>`, `<think>`) is encoded as the characters it is.
Markers are the run's own: no text, whatever it spells, may give their ids (`encode`).
"""

import hashlib
import re
from itertools import pairwise

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rntp.errors import ConfigError
from rntp.model.sources import localize

_MARKERS = "rntp_markers"  # an attribute of the tokenizer: workers get it along with the rest


def load_tokenizer(spec: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model spec (see `rntp.load_model`), without think markers."""
    try:
        return AutoTokenizer.from_pretrained(localize(spec))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.spec {spec!r} has no usable tokenizer: {error}") from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Encode a text: int64 [n], with nothing added, no special token and no marker read out of it.

    Tokenizers split their special tokens when asked to, but not tokens that were added as ordinary
    ones, as some models have `<think>`: what spells a marker is encoded in pieces.

    Raises ConfigError where a single character gives a marker's id.
    """
    return torch.tensor(_ids_without(tokenizer, text, protected(tokenizer)), dtype=torch.int64)


def token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Find where in a text its tokens begin, in characters; one entry a token.

    Raises ConfigError for a tokenizer that does not say it.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{tokenizer.name_or_path!r} is a slow tokenizer, which does not say where its tokens "
            "stand; prepare the corpus with the fast one"
        )
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    return [start for start, _ in encoded["offset_mapping"]]


def encode_marked(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Encode a text of a made corpus' labels, in which what spells a marker is that marker: int64
    [n]. Never for text of a page."""
    spelt = {marker: token for token, marker in protected(tokenizer).items()}
    if not spelt:
        return encode(tokenizer, text)
    parts = re.split(f"({'|'.join(map(re.escape, spelt))})", text)
    pieces = [
        torch.tensor([spelt[part]]) if part in spelt else encode(tokenizer, part) for part in parts
    ]
    return torch.cat(pieces)


def encode_unguarded(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """Encode a text as `encode` does where no marker is known: int64 [n]; for comparison only."""
    return torch.tensor(_plain_ids(tokenizer, text), dtype=torch.int64)


def protected(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Markers that the tokenizer has been given by `add_marker`: what they spell, by id."""
    found: dict[int, str] = getattr(tokenizer, _MARKERS, {})
    return found


def _plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    return ids


def _ids_without(
    tokenizer: PreTrainedTokenizerBase, text: str, markers: dict[int, str]
) -> list[int]:
    ids = _plain_ids(tokenizer, text)
    if markers.keys().isdisjoint(ids):
        return ids
    if len(text) < 2:
        raise ConfigError(
            f"the tokenizer encodes the text {text!r} as the think marker "
            f"{' or '.join(map(repr, markers.values()))}, so that pages could not be told from "
            "thoughts; choose other markers (model.markers)"
        )
    # A normalizer may have made a marker of other characters: then the text is halved until that
    # place is found.
    spelt = "|".join(re.escape(marker) for marker in markers.values() if len(marker) > 1)
    cuts = [m.start() + len(m[0]) // 2 for m in re.finditer(spelt, text)] if spelt else []
    ends = [0, *(cuts or [len(text) // 2]), len(text)]
    pieces = (text[start:end] for start, end in pairwise(ends))
    return [i for piece in pieces for i in _ids_without(tokenizer, piece, markers)]


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what the tokenizer itself puts before a text: a BOS token for some models, else
    nothing."""
    bos = tokenizer.bos_token_id
    with_special = tokenizer("a", split_special_tokens=True)["input_ids"]
    return (bos,) if bos is not None and with_special[:1] == [bos] else ()


def start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Find the token that stands before a text which is read by itself: what the tokenizer puts
    there, else its BOS, else its end token, behind which models have seen texts begin.

    Raises ConfigError where the tokenizer has none of them.
    """
    for token in (*prefix_ids(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ConfigError(
        "reading.window: a reading begins with the tokenizer's BOS or EOS token, and this one has "
        "neither; set one in the tokenizer's folder (tokenizer_config.json: eos_token), or "
        "reading.window to null"
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of the mapping from text to ids, before think markers are added: 16 hex digits."""
    probe = "The  quick\n\tbrown fox, 3.14159" + "".join(chr(c) for c in range(32, 0x2000))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    known = [(text, i) for text, i in vocabulary if i < tokenizer.vocab_size]
    facts = repr((known, encode(tokenizer, probe).tolist()))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def add_marker(tokenizer: PreTrainedTokenizerBase, marker: str) -> tuple[int, list[int]]:
    """Give the tokenizer a marker: (its id, ids of its sub-tokens), no ids if the token was there.

    From now on `encode` gives this id to no text.
    """
    parts: list[int] = []
    if marker not in tokenizer.get_vocab():
        parts = encode(tokenizer, marker).tolist()
        tokenizer.add_tokens([AddedToken(marker, special=True, normalized=False)])
    token: int = tokenizer.get_vocab()[marker]
    setattr(tokenizer, _MARKERS, {**protected(tokenizer), token: marker})
    return token, parts


def pause_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that stands for thinking without content: a full stop (2404.15758)."""
    return int(encode(tokenizer, ".")[-1])


def decode(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> str:
    """Text of the ids [n], for people to read; special tokens are shown."""
    text = tokenizer.decode(ids.tolist())
    assert isinstance(text, str)
    return text


def token_strings(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """Each token as text, for people to read; pieces of a character show as U+FFFD."""
    return [decode(tokenizer, i) for i in ids[:, None]]
