"""The settings of a growing corpus: one strict YAML file."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rntp_data_prep.config import PrepConfig
from rntp_data_prep.web.urls import Allowed, canonical, folder_of

from rntp.config.files import load_yaml
from rntp.errors import ConfigError

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]

_MADE = {"sources", "output", "tokenizer", "apart_from"}
_MAY_CHANGE = {"pages", "megabytes", "delay_s", "page_s", "agent", "most_tilt"}


class Frontier(BaseModel):
    """Where pages may come from, what they may cost, and how they are prepared."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    output: Path
    """Folder of the ledger, the pages and the segments; the same one at every growth of a run."""
    sites: dict[str, Path | None] = {}
    """Addresses to start at. null: pages are asked for; a folder: read from what was crawled there,
    files named by their paths below the folder of the address. Links are followed."""
    pools: dict[str, str] = {}
    """Files of pages by a name of yours: a path or glob of any kind that `rntp data prep` reads,
    taken in their order. Each is a region."""
    allow: tuple[str, ...] = ()
    """Address prefixes that may be asked for. Empty: what lies below the folders of `sites`. Of
    their hosts robots.txt is read, too."""
    pages: Positive
    """Requests of one growth, redirects and failures included."""
    megabytes: Annotated[float, Field(gt=0)] = 200.0
    """Bodies of one growth; the page that goes beyond is its last."""
    pages_a_look: Positive = 16
    """Pages that are chosen at a time, before the model looks at them."""
    random_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the pages whose region is drawn evenly, so that none starves; not among those where
    thinking surely costs."""
    patience: Positive = 4
    """A region is left alone for the rest of a growth when so many of its pages in a row gave no
    document."""
    region_depth: Annotated[int, Field(ge=0)] = 1
    """Folders of an address' path that make a region, beside its host. Digits do not count."""
    regions_a_host: Positive = 32
    """Regions of a host; what lies elsewhere on it is one more."""
    placement: str = ""
    """Placement policy that the model thinks by; empty: the run's own."""
    positions: Annotated[int, Field(ge=2)] = 8
    """Positions of a page at which the model thinks."""
    thoughts: Annotated[int, Field(ge=2)] = 4
    """Thoughts at each position."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of all draws."""
    delay_s: Annotated[float, Field(ge=0)] = 1.0
    """Seconds between two requests to a host; more where its robots.txt asks for more."""
    page_s: Seconds = 20.0
    """Longest of one request, seconds, from the first byte to the last."""
    page_bytes: Positive = 2 << 20
    """Largest body, bytes."""
    agent: str = "rntp"
    """What a site reads in its log. Say who you are: `rntp (you@example.org)`."""
    most_tilt: Annotated[float, Field(ge=1)] = 4.0
    """A corpus of the mixture gets at most so many times its share of tokens, and at least one such
    part of it."""
    prep: dict[str, Any] = {}
    """Settings of `rntp data prep` but for sources, output and tokenizer."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.sites and not self.pools:
            raise ValueError("sites and pools are empty: name one to grow from")
        for start in self.sites:
            if canonical(start) is None:
                raise ValueError(f"sites: {start!r} is no address of http or https")
        if made := _MADE & set(self.prep):
            raise ValueError(f"prep: leave out {', '.join(sorted(made))}, which this command sets")
        self.preparation(["pages.jsonl"], Path("segment"), "tokenizer", ())
        return self

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file. Raises ConfigError with one line a mistake."""
        raw = load_yaml(Path(path), "frontier")
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: expected keys such as `sites:` and `output:`")
        try:
            found = cls.model_validate(raw)
        except ValidationError as error:
            known = ", ".join(cls.model_fields)
            lines = [
                f"  {'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
                + (f" (there are: {known})" if e["type"] == "extra_forbidden" else "")
                for e in error.errors()
            ]
            raise ConfigError("\n".join([f"{path} cannot be used:", *lines])) from error
        found.allowed()
        for start, folder in found.sites.items():
            if folder is not None and not folder.is_dir():
                raise ConfigError(f"sites: {start}: there is no folder {folder}; correct the path")
        return found

    def allowed(self) -> Allowed:
        """What may be asked for. Raises ConfigError for a prefix that is no address, and for a
        start outside the list."""
        found = Allowed(self.allow or [folder_of(start) for start in self.starts()])
        outside = [start for start in self.starts() if start not in found]
        if outside:
            raise ConfigError(f"sites: {outside[0]} is not below any prefix of `allow`; add one")
        return found

    def starts(self) -> list[str]:
        """The start addresses, canonical."""
        return [str(canonical(start)) for start in self.sites]

    def crawled(self) -> dict[str, Path]:
        """The folders that stand for sites, by the address of what they hold."""
        return {
            folder_of(str(canonical(start))): folder
            for start, folder in self.sites.items()
            if folder is not None
        }

    def preparation(
        self, sources: list[str], output: Path, tokenizer: str, apart_from: tuple[Path, ...]
    ) -> PrepConfig:
        """How the pages of a segment are prepared. Raises ValidationError."""
        facts = {"sources": sources, "output": output, "tokenizer": tokenizer}
        return PrepConfig.model_validate({**self.prep, **facts, "apart_from": apart_from})

    def digest(self) -> str:
        """Hexadecimal SHA-256 of what decides about choices."""
        facts = self.model_dump(mode="json", exclude=_MAY_CHANGE)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
