"""Write the made parts of README and pages, or check them: `blocks.py [--check]`.

A made part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; NAME says which function
makes it: `figures.NAME` from committed results, `reference.NAME` from the program itself.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import figures
import reference

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(<!-- begin ([\w.]+) -->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)

Makers = Mapping[str, Callable[[], str]]


def makers() -> Makers:
    """Name every function that makes a part."""
    return {
        f"{module.__name__}.{name}": maker
        for module in (figures, reference)
        for name, maker in module.MAKERS.items()
    }


def pages() -> list[Path]:
    """List the files that may hold made parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def made(text: str, known: Makers) -> str:
    """Replace the made parts of a text. Raises KeyError for a name that nothing makes."""

    def part(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        return f"{begin}\n{known[name]().strip()}\n\n{end}"

    return BLOCK.sub(part, text)


def main() -> None:
    """Write what has changed; with --check fail where something would."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where stale")
    check = parser.parse_args().check
    known, stale = makers(), []
    for page in pages():
        before = page.read_text(encoding="utf-8")
        after = made(before, known)
        if after != before:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(after, encoding="utf-8")
    if stale and check:
        sys.exit(f"stale: {', '.join(stale)}; run python docs/scripts/blocks.py")
    print(f"written: {', '.join(stale)}" if stale else "all parts are as they should be")


if __name__ == "__main__":
    main()
