"""BM25 over the words of pieces, by tantivy: memory-mapped segments, of which a commit adds one.

bm25s, the other well-kept library (MIT, numpy alone), answers as quickly, but its matrix is made at
once from all pieces in memory, and nothing can be added to it: an index that grows, and that a kill
must not set back, is built anew each time.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rntp.errors import ConfigError, DataError

# What tantivy keeps before it writes a segment.
_WRITER_BYTES = 64 << 20
# Digits of a score that count: sums in another order, of segments that were merged otherwise,
# differ behind them, and equal scores go by the number of the piece.
_DIGITS = 4
# Pieces that are fetched: at first, and for who asks on. Behind the last of them the order among
# equal scores is the library's.
_LIMITS = (10, 60, 600)


def tantivy() -> Any:
    """The library. Raises ConfigError where it is not installed."""
    try:
        import tantivy as library
    except ImportError as error:
        raise ConfigError(
            "searching needs the package tantivy, which is not installed; pip install 'rntp[tools]'"
        ) from error
    return library


def _schema() -> Any:
    builder = tantivy().SchemaBuilder()
    # No positions: nothing asks for phrases. The words are ready-made (`rntp.tools.words`).
    builder.add_text_field("words", tokenizer_name="whitespace", index_option="freq")
    builder.add_integer_field("piece", fast=True)
    return builder.build()


class Writer:
    """Adds pieces; what was added is there from the next `commit` on. One at a time for a folder.

    Raises DataError where another process writes, or the folder holds something else.
    """

    def __init__(self, folder: Path) -> None:
        library = tantivy()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._index = library.Index(_schema(), path=str(folder))
            self._index.reload()
            self.num_pieces: int = self._index.searcher().num_docs
            self._writer = self._index.writer(_WRITER_BYTES, 1)
        except ValueError as error:
            raise DataError(
                f"{folder} cannot be written ({error}); wait for the other process that builds "
                "this index, or delete the folder and build it again"
            ) from error
        self._document = library.Document

    def add(self, piece: int, words: Iterable[str]) -> None:
        """Add a piece by its number."""
        self._writer.add_document(self._document(words=" ".join(words), piece=piece))

    def commit(self) -> None:
        """Flush to the disk, all that was added or, after a kill, nothing of it."""
        self._writer.commit()

    def close(self) -> None:
        """Wait for merges and give the lock back."""
        self._writer.wait_merging_threads()


class Reader:
    """Finds pieces; from any thread.

    num_pieces: that there are. version: of the library, on which answers may depend.
    """

    def __init__(self, folder: Path) -> None:
        self._library = library = tantivy()
        try:
            self._index = library.Index.open(str(folder))
            self._searcher = self._index.searcher()
        except ValueError as error:
            raise DataError(
                f"{folder} is no index that can be read ({error}); delete the index and build it "
                "again: rntp data index"
            ) from error
        self.num_pieces: int = self._searcher.num_docs
        self.version = f"tantivy {library.__version__}"

    def ranked(self, words: Sequence[str]) -> Iterator[int]:
        """Go through the numbers of pieces, those with the highest score for some words first;
        equal scores in the order of their numbers."""
        seen: set[int] = set()
        for limit in _LIMITS if words else ():
            scored = self._scored(words, limit)
            # Of the lowest score there may be more than were fetched.
            last = limit == _LIMITS[-1] or len(scored) < limit
            lowest = max((score for score, _ in scored), default=0.0)
            for score, piece in sorted(scored):
                if piece not in seen and (last or score < lowest):
                    seen.add(piece)
                    yield piece
            if last:
                return

    def _scored(self, words: Sequence[str], limit: int) -> list[tuple[float, int]]:
        """(−score, piece) of the best pieces."""
        library, schema = self._library, self._index.schema
        clauses = [
            (
                library.Occur.Should,
                library.Query.term_query(schema, "words", word, index_option="freq"),
            )
            for word in dict.fromkeys(words)
        ]
        query = library.Query.boolean_query(clauses)
        hits = self._searcher.search(query, limit, count=False).hits
        pieces = self._searcher.fast_field_values("piece", [address for _, address in hits])
        return [
            (-round(score, _DIGITS), piece) for (score, _), piece in zip(hits, pieces, strict=True)
        ]
