"""Make an index of a corpus, or add to it: documents that are in it already are passed over.

A kill costs what came behind the last commit, some megabytes of text. A commit goes in four steps:
the texts are appended and flushed; index.json says what is to follow; tantivy commits, all or
nothing; index.json says that it is done. How many pieces tantivy has tells which of them were left.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rntp.data.id_set import IdSet
from rntp.data.manifest import Manifest
from rntp.errors import ConfigError, DataError
from rntp.model.tokenizer import token_starts
from rntp.tools.index.bm25 import Writer
from rntp.tools.index.store import (
    DOCUMENT,
    FILES,
    PIECE,
    Extent,
    Facts,
    read_facts,
    write_facts,
)
from rntp.tools.words import words

# Text between two commits.
COMMIT_BYTES = 8 << 20

# (text) -> characters at which its pieces end, the last one included.
Cut = Callable[[str], list[int]]


def by_tokens(tokenizer: Any, size: int) -> Cut:
    """Cut a text every `size` tokens. Raises ConfigError for a tokenizer that does not say where in
    a text its tokens stand."""
    if size < 1:
        raise ConfigError(f"a piece has at least 1 token, not {size}")
    token_starts(tokenizer, "")  # one that cannot is refused before anything is written

    def cut(text: str) -> list[int]:
        starts = token_starts(tokenizer, text)[size::size]
        # Tokens of one character (bytes of it) start at the same place.
        ends = sorted({start for start in starts if 0 < start < len(text)})
        return [*ends, len(text)]

    return cut


@dataclass
class _Block:
    """Documents that are not committed yet."""

    texts: list[bytes] = field(default_factory=list)
    piece_ends: list[int] = field(default_factory=list)
    documents: list[tuple[bytes, int]] = field(default_factory=list)


class Builder:
    """Appends documents to an index; a context manager.

    facts: of what is committed. Raises DataError for a folder of another tokenizer or size, or one
    in which the parts do not fit each other.
    """

    def __init__(self, folder: Path, facts: Facts) -> None:
        """facts: of a new index; those of an index that is there have to agree."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        there = read_facts(folder)
        self.facts = facts if there is None else _agreeing(folder, there, facts)
        self._writer = Writer(folder / "bm25")
        self._settle()
        self._block = _Block()
        self._extent = self.facts.extent
        self._known = IdSet()
        for name in self._document_ids():
            self._known.add(name)

    def __enter__(self) -> "Builder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def __contains__(self, document_id: str) -> bool:
        return document_id in self._known

    def add(self, document_id: str, text: str, ends: Sequence[int]) -> None:
        """Add a document. ends: characters at which its pieces end."""
        encoded = text.encode("utf-8", "replace")
        chain = hashlib.blake2b(self._extent.chain.encode(), digest_size=32)
        chain.update(repr((document_id, list(ends))).encode() + encoded)
        begin, at, pieces = 0, self._extent.text_bytes, self._extent.pieces
        for end in ends:
            piece = text[begin:end]
            self._writer.add(pieces, words(piece))
            at, pieces, begin = at + len(piece.encode("utf-8", "replace")), pieces + 1, end
            self._block.piece_ends.append(at)
        self._block.texts.append(encoded)
        self._block.documents.append((document_id.encode("ascii"), pieces))
        self._known.add(document_id)
        self._extent = replace(
            self._extent,
            documents=self._extent.documents + 1,
            pieces=pieces,
            text_bytes=at,
            chain=chain.hexdigest(),
        )

    @property
    def open_bytes(self) -> int:
        """Text that a kill would lose."""
        return self._extent.text_bytes - self.facts.extent.text_bytes

    def read(self, corpus: str, documents: int) -> None:
        """Note how many documents of a corpus were looked at."""
        self._extent = replace(self._extent, read={**self._extent.read, corpus: documents})

    def commit(self) -> None:
        """Bring to the disk what was added and read."""
        block, self._block = self._block, _Block()
        rows = (
            b"".join(block.texts),
            np.array(block.piece_ends, PIECE).tobytes(),
            np.array(block.documents, DOCUMENT).tobytes(),
        )
        for name, data in zip(FILES, rows, strict=True):
            with open(self._folder / name, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        write_facts(self._folder, replace(self.facts, following=self._extent))
        self._writer.commit()
        self._done(self._extent)

    def _done(self, extent: Extent) -> None:
        self.facts = replace(self.facts, extent=extent, following=None)
        write_facts(self._folder, self.facts)

    def _settle(self) -> None:
        """Finish a commit that was cut short, or take it back."""
        extent, following = self.facts.extent, self.facts.following
        found = self._writer.num_pieces
        if following is not None and found == following.pieces:
            extent = following
        if found != extent.pieces:
            raise DataError(
                f"{self._folder} has the words of {found} pieces and the texts of {extent.pieces}; "
                "delete the folder and build the index again"
            )
        for name, size in zip(FILES, extent.sizes, strict=True):
            with open(self._folder / name, "ab") as file:
                if file.tell() < size:
                    raise DataError(
                        f"{self._folder / name} has {file.tell()} bytes of {size}; delete the "
                        "folder and build the index again"
                    )
                file.truncate(size)
        self._done(extent)

    def _document_ids(self) -> Iterator[str]:
        rows = np.fromfile(self._folder / "documents.bin", DOCUMENT)
        return (name.decode("ascii") for name in rows["id"].tolist())


def _agreeing(folder: Path, there: Facts, wanted: Facts) -> Facts:
    for name in ("tokenizer_digest", "piece_tokens"):
        one, other = getattr(there, name), getattr(wanted, name)
        if one != other:
            raise DataError(
                f"{folder} was built with {name} {one} and is to go on with {other}; choose "
                "another folder, or the same setting"
            )
    return there


def build(
    manifest: Manifest,
    folder: Path,
    cut: Cut,
    *,
    piece_tokens: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Facts:
    """Add the documents of a corpus to an index that is there or not, from where a build before
    this one had come.

    Raises DataError for damaged documents, and as `Builder` does.
    """
    new = Facts(manifest.tokenizer_spec, manifest.tokenizer_digest, piece_tokens, Extent())
    with Builder(folder, new) as builder:
        names = manifest.document_ids
        for number in range(builder.facts.extent.read.get(manifest.digest, 0), len(names)):
            if names[number] not in builder:
                document = manifest.read(number)
                builder.add(document.id, document.text, cut(document.text))
            if builder.open_bytes >= COMMIT_BYTES:
                builder.read(manifest.digest, number + 1)
                builder.commit()
            if progress is not None and number % 100 == 0:
                progress("documents", number, len(names))
        builder.read(manifest.digest, len(names))
        builder.commit()
        return builder.facts
