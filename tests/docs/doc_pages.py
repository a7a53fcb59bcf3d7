"""What documentation pages hold: fenced blocks, code spans, headings."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rntp import placement, rewards, tools

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block. page: where. line: of its first line. options: behind the language."""

    page: Path
    line: int
    language: str
    options: str
    text: str

    @property
    def label(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks(language: str) -> list[Block]:
    """Find all fenced blocks of a language, page by page."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 2
            found.append(Block(page, line, match[1], match[2].strip(), match[3]))
    return [block for block in found if block.language == language]


@cache
def spans() -> list[tuple[str, str]]:
    """Find (page, text) of every code span outside fenced blocks."""
    found = []
    for page in PAGES:
        plain = FENCE.sub("", page.read_text(encoding="utf-8"))
        found += [(str(page.relative_to(ROOT)), text) for text in SPAN.findall(plain)]
    return found


@contextmanager
def registries_kept() -> Iterator[None]:
    """Take out again what pasted code registers."""
    known: list[dict] = [
        rewards.REGISTRY,
        rewards.BASELINES,
        rewards.NEEDS,
        placement.REGISTRY,
        tools.REGISTRY,
    ]
    before = [set(registry) for registry in known]
    try:
        yield
    finally:
        for registry, names in zip(known, before, strict=True):
            for name in registry.keys() - names:
                del registry[name]
