"""Pure functions from extracted text to the text of a document.

Rules are few and say what they drop, so that a reader of a corpus can tell what is missing.
"""

import re
import sys
import unicodedata
from collections.abc import Callable

# A page may spell out the very markers that training gives a meaning, or another model's control
# tokens. One space inside the brackets keeps them readable and makes them ordinary text.
_MARKERS = re.compile(
    r"""</?(?:think|thinking|thought|answer|s|bos|eos|pad|unk|mask|end_of_turn|start_of_turn
           |tool_call|tool_response|file_sep|filename|repo_name|reponame|empty_output
           |fim_(?:prefix|middle|suffix|pad)|endoftext)>
      | <\|[^<>|\s]{1,40}\|>
      | <<SYS>> | <</SYS>> | \[/?INST\]
    """,
    re.VERBOSE | re.IGNORECASE,
)

# Whole lines made of nothing but these are links between pages.
_NAVIGATION_WORDS = (
    "previous topic|next topic|previous page|next page|previous chapter|next chapter|previous|prev"
    "|next|up|home|top|back to top|contents|table of contents|index|modules|search|menu|login"
    "|log in|sign in|sign up|share|print|skip to main content|skip to content|show source"
    "|report a bug|this page|navigation"
)
_NAVIGATION_LINE = re.compile(rf"[\W_]*(?:\b(?:{_NAVIGATION_WORDS})\b[\W_]*)+", re.IGNORECASE)
_FOOTER_LINE = re.compile(
    r"""(?:this\ page\ (?:was\ )?last\ (?:modified|updated)\ .*
         |last\ (?:modified|updated)(?:\ on|:)\ .*
         |(?:copyright\s*)?(?:©|\(c\))\s*(?:copyright\s*)?\d{4}.*
         |all\ rights\ reserved\.?
         |available\ languages:.*
         |created\ using\ sphinx.*
         |edit\ this\ page.*)""",
    re.IGNORECASE | re.VERBOSE,
)
_BREADCRUMB_LINE = re.compile(r"\S[^>»›]{0,60}(?:\s[>»›]\s+[^\s>»›][^>»›]{0,60}){2,}")
_MAX_BOILERPLATE_CHARS = 300
# "8.1.2. Configuring the Keyboard", "Chapter 4. Security": entries of a table of contents when
# several follow each other. Numbers of one level are left alone: they may be the steps of a list.
_CONTENTS_ENTRY = re.compile(
    r"\s*(?:(?:\d+|[A-Z])(?:\.\d+)+\.?|(?:Chapter|Appendix|Part)\s\w+[.:])\s\S.{0,120}"
)
_MIN_CONTENTS_ENTRIES = 3
_NOT_PLAIN = re.compile(r"[^\n\t -~]")
_MAX_HEADER_LINES = 8
_MAX_HEADER_LINE_CHARS = 80
_MIN_HEADING_CHARS = 3
# Ordering a run of combining marks takes time by the square of its length. Unicode's own limit
# for streams (UAX #15, section 13) is 30; no script needs as many.
_MAX_MARKS = 30
_MARKS = "".join(chr(n) for n in range(sys.maxunicode + 1) if unicodedata.combining(chr(n)))
_LONG_RUN_OF_MARKS = re.compile(f"([{_MARKS}]{{{_MAX_MARKS}}})[{_MARKS}]++")


Extractor = Callable[[str], tuple[str, str]]
"""HTML to (title, text)."""


def cleaned(raw: str, *, is_html: bool, title: str, extractor: Extractor) -> tuple[str, str, int]:
    """(title, text, neutralised markers) of what was read. Raises what the extractor does."""
    text = raw
    if is_html:
        found, text = extractor(raw)
        title = title or found
    text, neutralised = clean(text, title)
    return normalise(title), text, neutralised


def clean(text: str, title: str) -> tuple[str, int]:
    """Text ready to be a document, and how many special-token strings in it were neutralised.

    text, title: as extracted from the page.
    """
    return neutralise(drop_site_header(drop_boilerplate(normalise(text)), normalise(title)))


def normalise(text: str) -> str:
    """NFC; plain spaces and newlines; no control, invisible or unassigned characters; of a run of
    combining marks the first 30.

    Indentation stays (code), spaces at line ends go, at most one blank line in a row.
    """
    text = _LONG_RUN_OF_MARKS.sub(r"\1", text)
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = _NOT_PLAIN.sub(lambda found: _plain(found[0]), text)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def drop_boilerplate(text: str) -> str:
    """Leave out lines that lead through a site or sign it, and the heading marks ¶ and §.

    Dropped are whole lines: navigation words only; breadcrumbs with two or more separators;
    footers (dates of change, copyright, languages); three or more table-of-contents entries in a
    row. A line of more than 300 characters always stays.
    """
    lines = _without_contents([_without_mark(line) for line in text.split("\n")])
    kept = [line for line in lines if not _is_boilerplate(line.strip())]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")


def drop_site_header(text: str, title: str) -> str:
    """Leave out the lines above the page's heading: the site's name and slogan.

    The heading is the line among the first lines that the title starts with, letter case aside.
    Where there is none, or a line above it is long enough to be prose, nothing is dropped.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines[:_MAX_HEADER_LINES]):
        heading = line.strip().casefold()
        if len(heading) >= _MIN_HEADING_CHARS and title.casefold().startswith(heading):
            return "\n".join(lines[number:])
        if len(line) > _MAX_HEADER_LINE_CHARS:
            break
    return text


def neutralise(text: str) -> tuple[str, int]:
    """Put a space inside the brackets of special-token strings: `<think>` becomes `< think >`.

    Returns the text and the number of replacements. Applying it twice changes nothing more.
    """
    return _MARKERS.subn(lambda found: f"{found[0][0]} {found[0][1:-1]} {found[0][-1]}", text)


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    if category in ("Zl", "Zp"):
        return "\n"
    # Cc control (NUL too), Cf invisible format (zero-width, soft hyphen, bidirectional override),
    # Cs surrogate, Co private use (icon fonts), Cn unassigned; U+FFFD marks undecodable bytes.
    return "" if category.startswith("C") or character == "\ufffd" else character


def _without_mark(line: str) -> str:
    """A heading without the ¶ or § behind it, which links to it."""
    bare = line.rstrip(" \t")
    return bare[:-1].rstrip(" \t") if bare.endswith(("¶", "§")) else line


def _is_boilerplate(line: str) -> bool:
    return len(line) <= _MAX_BOILERPLATE_CHARS and bool(
        _NAVIGATION_LINE.fullmatch(line)
        or _FOOTER_LINE.fullmatch(line)
        or _BREADCRUMB_LINE.fullmatch(line)
    )


def _without_contents(lines: list[str]) -> list[str]:
    kept: list[str] = []
    run: list[str] = []
    for line in [*lines, ""]:
        if _CONTENTS_ENTRY.fullmatch(line) and not line.rstrip().endswith((".", ":", ";")):
            run.append(line)
            continue
        if len(run) < _MIN_CONTENTS_ENTRIES:
            kept.extend(run)
        run = []
        kept.append(line)
    return kept[:-1]
