"""The settings of a preparation: one strict YAML file."""

import difflib
import fnmatch
import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rntp.config.files import load_yaml
from rntp.errors import ConfigError, DataError
from rntp_data_prep.page import Damaged, Options

Positive = Annotated[int, Field(ge=1)]

HF = "hf:"
PACKED = (".gz", ".zst", ".lz4", ".bz2", ".xz")
KINDS = (
    *(".warc", ".wet", ".arc", ".wacz", ".jsonl", ".ndjson", ".json", ".parquet", ".tar", ".tgz"),
    *(".html", ".htm", ".xhtml", ".txt", ".md"),
)
SUFFIXES = (*KINDS, *(kind + packed for kind in KINDS for packed in PACKED))
"""In lower case; what a file is, is told by its first bytes as well."""

# Always part of a preparation's identity, as when there were no others.
_FIRST_SETTINGS = ("min_tokens", "min_chars", "max_chars", "shard_bytes")

_NO_DECISIONS = ("sources", "output", "tokenizer", "workers")

Filter = Literal["url", "gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality"]


class PrepConfig(BaseModel):
    """What to read, what to keep, and where to write. Relative paths start at the current folder.

    None of the limits truncates: a page outside them is left out, and the ledger says why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files as paths, globs such as `crawl/*.warc.gz`, or URLs, and `hf:NAME` for what `datasets`
    streams; read in order. Kinds: .warc, .wet, .arc, .wacz, .jsonl or .json, .parquet, .tar
    (webdataset), .html, .txt, plain or packed (.gz, .zst, .lz4, .bz2, .xz). Rows hold `html` or
    `text`, and maybe `url` and `title`."""
    text_field: str | dict[str, str] = ""
    """Field of the rows that holds the text, where it is not `text`, `content` or `raw_content`;
    `page.text` is `text` within `page`. By source: `{crawl/*.jsonl: body}`."""
    html_field: str | dict[str, str] = ""
    """Field of the rows that holds HTML, where it is not `html`; as `text_field`."""
    damaged: Damaged = "refuse"
    """What becomes of a file that is cut, or does not match its checksums: refuse it, or use what
    is whole in it. Every damaged place is in the ledger then."""
    output: Path
    """Folder to write the corpus to. It appears when the corpus is complete and verified."""
    tokenizer: str
    """Tokenizer that counts tokens: a model spec, the same as the run's `model.spec`."""
    min_tokens: Positive = 96
    """Fewest tokens of a document. A coarse floor: a run leaves out what its own settings need."""
    min_chars: Positive = 200
    """Fewest characters of a cleaned text; checked before the tokenizer runs."""
    max_chars: Positive = 1_000_000
    """Most characters of a cleaned text: longer ones are mostly dumps and indexes."""
    extractor: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """trafilatura is cleaner and some twenty times slower (extra `prep-hq`)."""
    extraction_s: Annotated[float, Field(gt=0)] = 30.0
    """trafilatura: longest for one page, seconds; then it is dropped as `extraction_timeout`. Raise
    it on a machine that is slow or busy: whether a page is kept should not depend on that."""
    languages: tuple[str, ...] = ()
    """Keep texts of these languages (ISO 639-1, as `en`); empty keeps all."""
    filters: tuple[Filter, ...] = ()
    """datatrove's filters, in this order, as FineWeb sets them (extra `filters`)."""
    mask_pii: bool = False
    """Put addresses that nobody has in place of mail and public IP addresses."""
    dedup: Literal["exact", "minhash"] = "exact"
    """exact: of the same texts, the first stays. minhash: also one of near-duplicates (5-grams, 14
    buckets of 8 hashes: similarity about 0.72 and above; extra `filters`)."""
    decontaminate: dict[str, Path] = {}
    """Benchmarks by name: .jsonl files with `text`, or `question` and `answer`. A document that
    holds 12 words of one in a row, with words of the answer among them, is dropped."""
    apart_from: tuple[Path, ...] = ()
    """Corpora whose documents are duplicates here: for one that is to grow another. Only the same
    texts are found, near-duplicates are not."""
    token_ids: bool = False
    """Keep token ids beside the texts: a run reads these and tokenises nothing. Two bytes a token,
    four with a vocabulary above 65,536."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Sources prepared at a time; 0 is one a core. The corpus does not depend on it."""
    shard_bytes: Annotated[int, Field(ge=1 << 16)] = 256 << 20
    """Largest shard, bytes. A single larger document gets a shard of its own."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars ({self.min_chars}) is above max_chars ({self.max_chars}): no text "
                "would be kept; lower min_chars"
            )
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file. Raises ConfigError with one line a mistake."""
        raw = load_yaml(Path(path), "preparation config")
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected keys such as `sources:` and `output:`")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = [_explain(problem["type"], problem) for problem in error.errors()]
            raise ConfigError("\n".join([f"{path} cannot be used:", *lines])) from error

    def source_files(self) -> list[str]:
        """The sources in order, globs sorted, each once. URLs and `hf:` names as they are.

        Raises DataError for a path or glob without a file, for a kind that is not read, and for a
        field of a source that is not there.
        """
        files = source_files(self.sources, "sources")
        for name in ("text_field", "html_field"):
            field = getattr(self, name)
            for key in field if isinstance(field, dict) else ():
                if not any(_matches(key, file) for file in files):
                    raise DataError(
                        f"{name}: no source is named {key}; write it as in `sources`, or as a "
                        "pattern of the files' paths"
                    )
        return files

    def options(self, source: str) -> Options:
        """Tell how one of `source_files` is read."""
        return Options(
            _for_source(self.text_field, source),
            _for_source(self.html_field, source),
            self.damaged,
        )

    def decisions(self) -> dict[str, Any]:
        """The settings that decide what becomes of a page; newer ones only where they are set."""
        facts = self.model_dump(
            mode="json", exclude={*_NO_DECISIONS, "decontaminate", "apart_from"}
        )
        fields = type(self).model_fields
        return {
            name: value
            for name, value in facts.items()
            if name in _FIRST_SETTINGS or getattr(self, name) != fields[name].default
        }


def _for_source(field: str | dict[str, str], source: str) -> str:
    if isinstance(field, str):
        return field
    return next((name for key, name in field.items() if _matches(key, source)), "")


def _matches(key: str, source: str) -> bool:
    return source == key or fnmatch.fnmatchcase(source, key)


def is_hub(source: str) -> bool:
    """Tell whether a source is what `datasets` streams, rather than a file or URL."""
    return source.startswith(HF) and not source.startswith(f"{HF}//")


def source_files(sources: Iterable[str], field: str) -> list[str]:
    """The sources in order, globs sorted, each once. URLs and `hf:` names as they are.

    field: where they were given, for the message. Raises DataError for a path or glob without a
    file, and for a kind that is not read.
    """
    found: dict[str, None] = {}
    for source in sources:
        if is_hub(source):
            found[source] = None
            continue
        matches = [source] if "://" in source else sorted(glob.glob(source, recursive=True))
        for path in matches or [source]:
            if "://" not in path and not Path(path).is_file():
                raise DataError(
                    f"there is no source {source} (from {Path.cwd()}); correct `{field}`, or "
                    "start in the folder that its paths are relative to"
                )
            if not path.lower().endswith(SUFFIXES):
                raise DataError(
                    f"{path} is none of {', '.join(KINDS)}, plain or packed ({', '.join(PACKED)}); "
                    f"leave it out of `{field}`"
                )
            found[path] = None
    return list(found)


def _explain(kind: str, problem: object) -> str:
    assert isinstance(problem, dict)
    place = ".".join(str(part) for part in problem["loc"])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(place, PrepConfig.model_fields, n=1)
        known = ", ".join(PrepConfig.model_fields)
        return f"  {place}: no such key" + (
            f"; did you mean `{near[0]}`?" if near else f" (there are: {known})"
        )
    if kind == "missing":
        return f"  {place}: required and not given"
    message = problem["msg"].removeprefix("Value error, ")
    return f"  {place}: {message} (given: {problem['input']!r})" if place else f"  {message}"
