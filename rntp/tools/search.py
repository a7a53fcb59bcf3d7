"""`search`: passages of other documents with the words of the arguments, by BM25."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from rntp.errors import ConfigError
from rntp.tools.index.bm25 import Reader
from rntp.tools.index.store import Store
from rntp.tools.page import Page, Quote
from rntp.tools.registry import REGISTRY
from rntp.tools.strict import Strict
from rntp.tools.words import words

# Words of a query that count; a thought that asks for more is cut.
_MOST_WORDS = 32


@REGISTRY.register("search")
class Search:
    """Search in an index of `rntp data index`.

    index: its folder. before: words before the position that are asked for beside those of the
    arguments; a thought then says what to look for besides, and may say nothing. ngram, near,
    quotes: see `Strict`. The index may hold the page itself and what comes next: whoever runs the
    tool withholds those.
    """

    def __init__(
        self,
        *,
        index: Path | str,
        before: int = 0,
        ngram: int = 8,
        near: float = 0.3,
        quotes: int = 1,
    ) -> None:
        if before < 0:
            raise ConfigError(f"thought.tools.use: search before {before}; give 0 or more words")
        folder = Path(index)
        self._store = Store(folder)
        self._bm25 = Reader(folder / "bm25")
        self.strict = Strict(ngram, near, quotes)
        self._before = before
        self.reads_page = before > 0
        asks = f" before {before}" if before else ""
        self.digest = f"search 1 {self._store.facts.digest} {self._bm25.version}{asks}"

    def __call__(self, arguments: str, page: Page) -> Iterator[Quote]:
        """Go through passages from the best on."""
        nearby = words(" ".join(page.text.split()[-self._before :])) if self._before else []
        wanted = list(dict.fromkeys(nearby + words(arguments)))[:_MOST_WORDS]
        return map(self._quote, self._bm25.ranked(wanted))

    def close(self) -> None:
        """Memory maps go with the object."""

    def _quote(self, piece: int) -> Quote:
        document = self._store.document_of(piece)
        return Quote(
            self._store.text(piece).strip(),
            self._store.document_id(document),
            partial(self._store.document_text, document),
        )
