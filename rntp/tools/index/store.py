"""The pieces of an index on the disk, memory-mapped.

    index.json       what it was made of, how far it is, its digest
    text.bin         the texts of the documents, UTF-8, one after the other
    pieces.bin       <u8, byte of text.bin at which each piece ends
    documents.bin    id of each document, <u8 number of pieces up to its end
    bm25/            the words (`rntp.tools.index.bm25`)

What lies behind the counts of index.json was left by a kill and is cut off by the next build.
"""

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rntp.errors import DataError
from rntp.runtime.files import write_json

FORMAT = 1
DOCUMENT = np.dtype([("id", "S64"), ("pieces", "<u8")])
PIECE = np.dtype("<u8")
FILES = ("text.bin", "pieces.bin", "documents.bin")
_AGAIN = "delete the folder and build it again: rntp data index"


@dataclass(frozen=True, slots=True)
class Extent:
    """How far an index is. chain: hash of all documents and their pieces, in order. read: documents
    that were looked at, by the digest of their corpus."""

    documents: int = 0
    pieces: int = 0
    text_bytes: int = 0
    chain: str = ""
    read: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bytes of FILES."""
        return self.text_bytes, self.pieces * PIECE.itemsize, self.documents * DOCUMENT.itemsize


@dataclass(frozen=True, slots=True)
class Facts:
    """What index.json holds. following: where a commit would lead that may have been cut short."""

    tokenizer: str
    tokenizer_digest: str
    piece_tokens: int
    extent: Extent
    following: Extent | None = None

    @property
    def digest(self) -> str:
        """Identity of the pieces: hexadecimal SHA-256. The same for the same documents in the same
        order, however often the build was interrupted."""
        found = [FORMAT, self.tokenizer_digest, self.piece_tokens, self.extent.chain]
        return sha256(json.dumps(found).encode()).hexdigest()


def write_facts(folder: Path, facts: Facts) -> None:
    """Write index.json, at once."""
    write_json(folder / "index.json", {"format": FORMAT, **asdict(facts), "digest": facts.digest})


def read_facts(folder: Path) -> Facts | None:
    """Read index.json; None where there is none. Raises DataError where it is damaged."""
    path = folder / "index.json"
    if not path.is_file():
        return None
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        version, digest = raw.pop("format"), raw.pop("digest")
        if version != FORMAT:
            raise DataError(
                f"{path} has format {version!r} and this program reads {FORMAT}; {_AGAIN}"
            )
        following = raw.pop("following")
        facts = Facts(
            **{**raw, "extent": Extent(**raw["extent"])},
            following=Extent(**following) if following else None,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); {_AGAIN}") from error
    if facts.digest != digest:
        raise DataError(f"{path} was edited: its digest is not its content's; {_AGAIN}")
    return facts


class Store:
    """Texts by the number of a piece. Raises DataError for a folder without a whole index."""

    def __init__(self, folder: Path) -> None:
        facts = read_facts(folder)
        if facts is None or facts.extent.pieces == 0:
            raise DataError(
                f"{folder} holds no index; build one: rntp data index CORPUS --out {folder}"
            )
        if facts.following is not None:
            raise DataError(
                f"{folder} is an index whose last build was cut short; start it again, it goes on"
            )
        self.facts, extent = facts, facts.extent
        for name, size in zip(FILES, extent.sizes, strict=True):
            found = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if found < size:
                raise DataError(f"{folder / name} has {found} bytes of {size}; {_AGAIN}")
        self._text = np.memmap(folder / "text.bin", np.uint8, "r", shape=(extent.text_bytes,))
        self._ends = np.memmap(folder / "pieces.bin", PIECE, "r", shape=(extent.pieces,))
        rows = np.memmap(folder / "documents.bin", DOCUMENT, "r", shape=(extent.documents,))
        self._ids, self._piece_ends = rows["id"], rows["pieces"]

    def text(self, piece: int) -> str:
        """Text of a piece."""
        return self._between(piece, piece + 1)

    def document_of(self, piece: int) -> int:
        """Number of the document that a piece is of."""
        return int(np.searchsorted(self._piece_ends, piece, side="right"))

    def document_id(self, document: int) -> str:
        """Id of a document."""
        name: bytes = self._ids[document]
        return name.decode("ascii")

    def document_text(self, document: int) -> str:
        """The whole text of a document."""
        first = int(self._piece_ends[document - 1]) if document else 0
        return self._between(first, int(self._piece_ends[document]))

    def _between(self, first: int, end: int) -> str:
        begin = int(self._ends[first - 1]) if first else 0
        return bytes(self._text[begin : int(self._ends[end - 1])]).decode("utf-8")
