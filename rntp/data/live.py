"""Pages that were not prepared: web files and `datasets` streams, as a run reads them.

`data.source: hf:NAME[:SPLIT]` or files (`crawl/*.warc.gz`) train at once. Nothing is known of such
a source before it is read: no count, no hash, no order but its own. `GUARANTEE` says what that
costs. Pages become texts as a preparation with default settings makes them, duplicates aside; so a
text has the same id, and falls into the same split, as in a prepared corpus.
"""

import hashlib
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rntp.config.places import is_task
from rntp.data.order import VERSION
from rntp.errors import ConfigError, DataError

GUARANTEE = (
    "read as it comes: shuffled within blocks of neighbouring documents only; a resume reads "
    "again what it had read, and stops if that is not the same; every rank reads everything; "
    "duplicates stay, and pages that a preparation would leave out are passed over and counted; "
    "damage ends the run instead of being replaced"
)

Encode = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class LiveDocument:
    """A cleaned text. id: hash of the text. token_ids: int64 [n], without special tokens."""

    id: str
    title: str
    token_ids: Tensor


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a source was read: pages, and a hash of all of them in order (32 hex digits)."""

    pages: int
    digest: str

    def __str__(self) -> str:
        return f"{self.pages} pages with hash {self.digest[:16]}"


def is_live(source: object) -> bool:
    """Tell whether `data.source` names pages rather than a corpus: `hf:…`, or files of their
    kinds."""
    if isinstance(source, dict) or is_task(source):
        return False
    from rntp_data_prep.config import SUFFIXES, is_hub

    name = str(source)
    return is_hub(name) or (name.lower().endswith(SUFFIXES) and not Path(name).is_dir())


def refuse_live(source: object, what: str) -> None:
    """Raise ConfigError if `source` names pages, which have no manifest. what: was to be done."""
    if is_live(source):
        raise ConfigError(
            f"{source} is not a corpus but pages to be read as they come, which {what} cannot do; "
            f"prepare it and name the output folder: {prepare_command(str(source), 'MODEL_SPEC')}"
        )


def prepare_command(source: str, tokenizer: str) -> str:
    """The shell command that makes a verified corpus of a live source, in build/live."""
    facts = {"sources": [source], "output": "build/live", "tokenizer": tokenizer}
    lines = " ".join(
        shlex.quote(f"{key}: {json.dumps(value, ensure_ascii=False)}")
        for key, value in facts.items()
    )
    return f"printf '%s\\n' {lines} > prep.yaml && rntp data prep prep.yaml"


class Live:
    """Pages by name, for those who ask what the data of a run is.

    digest: of the names of files, or of the data set, and of nothing in them. num_docs,
    total_tokens: 0, nobody knows.
    """

    num_docs = 0
    total_tokens = 0

    def __init__(self, source: str, **options: Any) -> None:
        """options: as of `rntp_data_prep.page.Options`, how the files are read. Raises DataError
        where there is no such file, and ConfigError for a URL."""
        from rntp_data_prep.config import is_hub, source_files
        from rntp_data_prep.page import Options

        if "://" in source:
            raise ConfigError(
                f"{source}: pages behind a URL are not read as they come; fetch the file, or "
                f"prepare it, which does: {prepare_command(source, 'MODEL_SPEC')}"
            )
        self.source = source
        self.options = Options(**options)
        self.files = source_files([source], "data.source")
        names = [name if is_hub(name) else Path(name).name for name in self.files]
        facts: dict[str, Any] = {"live": VERSION, "names": names}
        if self.options != Options():
            facts["options"] = asdict(self.options)
        self.digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self._checked: set[str] = set()

    def pages(self, tally: Any = None) -> Iterator[Any]:
        """Every page (`rntp_data_prep.page.Page`), in order, usable or not.

        tally: `rntp_data_prep.page.Tally` of what is done to pages. A file is checked whole
        before its first page, once. Raises DataError for damage, for what cannot be reached and for
        a file of which no page can be used, ConfigError where a reader is not installed.
        """
        from rntp_data_prep.sources import check, pages

        for name in self.files:
            if name not in self._checked:
                check(name, self.options)
                self._checked.add(name)
            yield from pages(name, self.options, tally)


class Reading:
    """One reading of a source from its first page on: documents out, and how far it has come.

    A page counts once it was handed out by the source, so that `mark` says what lies before the
    next document.
    """

    def __init__(self, live: Live, encode: Encode) -> None:
        from rntp_data_prep.cleaner import shared_cleaner
        from rntp_data_prep.page import Tally

        self._encode = encode
        self._tally = Tally()
        self._clean = shared_cleaner()
        self._pages = live.pages(self._tally)
        self._count = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._found: Counter[str] = Counter()
        self._before: Counter[str] = Counter()

    @property
    def mark(self) -> Mark:
        return Mark(self._count, self._hash.hexdigest())

    @property
    def counts(self) -> dict[str, int]:
        """What became of the pages so far, as the funnel of a preparation has it: `pages`, `kept`,
        `rejected/REASON`, `neutralised_markers`, and notes on pages that were changed."""
        found = self._before + self._found + self._tally.notes
        rejected = {name: n for name, n in sorted(found.items()) if name.startswith("rejected/")}
        first = {name: found[name] for name in ("pages", "kept")}
        rest = {name: n for name, n in sorted(found.items()) if name not in {*first, *rejected}}
        return {**first, **rejected, "neutralised_markers": 0, **rest}

    def skip(self, pages: int, check: Callable[[], None], counts: Mapping[str, int]) -> None:
        """Pass over so many pages, or to the end; check: called now and then. counts: what became
        of them when they were read."""
        while self._count < pages and self._next() is not None:
            if self._count % 256 == 0:
                check()
        self._tally.notes.clear()
        self._before = Counter(counts)

    def documents(self) -> Iterator[LiveDocument]:
        """Follow the pages from here on; those that a preparation leaves out are not
        among them, but in `counts`."""
        from rntp_data_prep.extract import Unextractable
        from rntp_data_prep.texts import MIN_TOKENS, page_text

        while (page := self._next()) is not None:
            self._found["pages"] += 1
            try:
                found = page_text(page, self._clean)
                ids = self._encode(found.text)
                if len(ids) < MIN_TOKENS:
                    raise Unextractable("too_few_tokens")
            except Unextractable as error:
                self._found[f"rejected/{error.reason}"] += 1
                continue
            self._found["kept"] += 1
            self._found["neutralised_markers"] += found.neutralised
            yield LiveDocument(found.id, found.title, ids)

    def _next(self) -> Any:
        page = next(self._pages, None)
        if page is not None:
            self._count += 1
            for part in (page.url, page.title, page.html, page.text):
                data = b"" if part is None else part.encode("utf-8", "surrogatepass")
                self._hash.update(len(data).to_bytes(8, "little") + data)
        return page


def extractor() -> str:
    """Versions that decide what becomes of an HTML page; "absent" where it cannot be read."""
    from rntp_data_prep.extract import extractor_version
    from rntp_data_prep.texts import RULES_VERSION

    try:
        return f"{extractor_version()} rules {RULES_VERSION}"
    except ConfigError:
        return "absent"


def no_document(live: Live, counts: Mapping[str, int], min_tokens: int, split: str) -> DataError:
    """The error for a source of which nothing is left."""
    became = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    return DataError(
        f"none of the {counts['pages']} pages of {live.source} gives a {split} document of "
        f"{min_tokens} tokens ({became}); lower placement.min_prefix_tokens, "
        "placement.positions_per_doc or reward.horizon, change data.heldout_fraction, or name "
        "other pages"
    )
