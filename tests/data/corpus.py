"""A small corpus for tests, whose tokens are the words."""

from pathlib import Path

import torch
from torch import Tensor

from rntp.data.manifest import Manifest
from rntp.data.manifest_writer import ShardWriter

DIGEST, SPEC = "f" * 16, "words"


def encode(text: str) -> Tensor:
    """One id a word: the number that the word ends with."""
    return torch.tensor([int(word.strip("w")) for word in text.split()], dtype=torch.int64)


def text_of(num_words: int, first: int = 0) -> str:
    return " ".join(f"w{first + n}" for n in range(num_words))


def write_corpus(folder: Path, lengths: list[int], shard_bytes: int = 1 << 20) -> Manifest:
    """Document n has lengths[n] words, w(1000 n), w(1000 n + 1), …, and the id doc-n."""
    with writer(folder, shard_bytes) as shards:
        for n, length in enumerate(lengths):
            shards.add(f"doc-{n}", text_of(length, 1000 * n), facts(n), length)
        return shards.finish({"pages": len(lengths), "kept": len(lengths)})


def writer(folder: Path, shard_bytes: int = 1 << 20) -> ShardWriter:
    return ShardWriter(
        folder,
        shard_bytes=shard_bytes,
        tokenizer_digest=DIGEST,
        tokenizer_spec=SPEC,
        prep_digest="0" * 64,
    )


def facts(n: int) -> dict[str, object]:
    return {"url": f"https://example.org/{n}", "title": f"Page {n} – é", "source": "a.warc.gz"}
