"""Tokenizers: where they come from, plain encoding of web text, and the think markers.

A document is encoded once and its ids are spliced; nothing is decoded and encoded again. Text of
a page that spells a special token (`<|im_end|>`, `<think>`) is encoded as the characters it is.
"""

import hashlib

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rntp.errors import ConfigError
from rntp.sources import localize


def load_tokenizer(spec: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model spec (see `rntp.load_model`), without think markers."""
    try:
        return AutoTokenizer.from_pretrained(localize(spec))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.spec {spec!r} has no usable tokenizer: {error}") from error


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """int64 [n]: ids of a text, with nothing added and no special token read out of it."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return torch.tensor(ids["input_ids"], dtype=torch.int64)


def prefix_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer itself puts before a text: a BOS token for some models, else nothing."""
    bos = tokenizer.bos_token_id
    with_special = tokenizer("a", split_special_tokens=True)["input_ids"]
    return (bos,) if bos is not None and with_special[:1] == [bos] else ()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of the mapping from text to ids, before think markers are added: 16 hex digits."""
    probe = "The  quick\n\tbrown fox, 3.14159" + "".join(chr(c) for c in range(32, 0x2000))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    known = [(text, i) for text, i in vocabulary if i < tokenizer.vocab_size]
    facts = repr((known, encode(tokenizer, probe).tolist()))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def add_marker(tokenizer: PreTrainedTokenizerBase, marker: str) -> tuple[int, list[int]]:
    """(id of the marker, ids of its sub-tokens); the second is empty if the token was there."""
    if marker in tokenizer.get_vocab():
        return tokenizer.get_vocab()[marker], []
    parts = encode(tokenizer, marker).tolist()
    tokenizer.add_tokens([AddedToken(marker, special=True, normalized=False)])
    return tokenizer.get_vocab()[marker], parts


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
