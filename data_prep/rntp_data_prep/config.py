"""The settings of a preparation: one strict YAML file."""

import difflib
import glob
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rntp.errors import ConfigError, DataError

Positive = Annotated[int, Field(ge=1)]

_SUFFIXES = (".warc", ".warc.gz")


class PrepConfig(BaseModel):
    """What to read, what to keep, and where to write. Relative paths start at the current folder.

    None of the limits truncates: a page outside them is left out, and the ledger says why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    """WARC files (.warc, .warc.gz), as paths or globs such as `crawl/*.warc.gz`; read in order."""
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
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"there is no preparation config {path}")
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected keys such as `sources:` and `output:`")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = [_explain(problem["type"], problem) for problem in error.errors()]
            raise ConfigError("\n".join([f"{path} cannot be used:", *lines])) from error

    def source_files(self) -> list[Path]:
        """The files of `sources` in order, globs sorted, each file once.

        Raises DataError for a path or glob without a file, and for a kind that is not read.
        """
        found: dict[Path, None] = {}
        for source in self.sources:
            matches = sorted(glob.glob(source, recursive=True)) or [source]
            for path in map(Path, matches):
                if not path.is_file():
                    raise DataError(
                        f"there is no source {source} (from {Path.cwd()}); correct `sources`, or "
                        "start in the folder that its paths are relative to"
                    )
                if not path.name.endswith(_SUFFIXES):
                    raise DataError(
                        f"{path} is not a {' or '.join(_SUFFIXES)} file; leave it out of `sources`"
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
