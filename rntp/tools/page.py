"""What tools are told and what they give back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from rntp.tools.strict import Strict


@dataclass(frozen=True, slots=True)
class Page:
    """What a tool may know of the page: nothing from the position on.

    text, token_ids: of the tokens before the position; position: how many these are. lost: text of
    those that a reading window leaves out, where there is one.
    """

    document_id: str
    position: int
    text: str
    token_ids: tuple[int, ...]
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Quote:
    """A passage of a document. document: its whole text, read only where it is asked for."""

    text: str
    document_id: str
    document: Callable[[], str]


def split_call(text: str) -> tuple[str, str]:
    """Name and arguments of a call as a thought writes it, `NAME ARGUMENTS`: up to the first space
    or line break, and what comes behind it."""
    name, *rest = text.strip().split(maxsplit=1)[:2] or [""]
    return name, rest[0] if rest else ""


Result = str | Iterable[Quote]
"""What a tool gives back: a text, or passages from the best on, as many as are asked for."""


class Tool(Protocol):
    """A function of the arguments of a call and of what the page allows.

    No clock, no net, no chance but one that is a function of the arguments: a call that was made
    once is replayed from the cache.

    digest: identity of what the tool does (version, index, limits). reads_page: it looks at the
    page, so that the same arguments may give another result on another page. strict: which quotes
    it may give; None for a tool whose result is a text of its own making.
    """

    @property
    def digest(self) -> str: ...

    @property
    def reads_page(self) -> bool: ...

    @property
    def strict(self) -> Strict | None: ...

    def __call__(self, arguments: str, page: Page) -> Result:
        """Raise `Failure` for what is to be counted as one."""
        ...

    def close(self) -> None:
        """End what runs for the tool."""
        ...


class Failure(Exception):
    """A call that gives no result. kind: for the count; text: what the thought reads."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call. failure: its kind, "" where there was none.

    withheld: quotes that were passed over, by reason. seconds: that the call took when it was made,
    wall clock; a replay has the same.
    """

    tool: str
    text: str
    failure: str = ""
    withheld: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
