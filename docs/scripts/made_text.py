"""Write text that is safe in Markdown."""

import re


def linked(text: str) -> str:
    """Make arXiv ids links and names of modules code, outside of code."""
    pieces = text.split("`")  # every other one is code
    for n in range(0, len(pieces), 2):
        piece = pieces[n].replace("<", "&lt;")
        piece = re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", piece)
        pieces[n] = re.sub(r"(?<!\w)(rntp\.[a-z_.]+[a-z_])(?!\w)", r"`\1`", piece)
    return "`".join(pieces)


def sentence(text: str) -> str:
    """Begin with a capital, unless with a name or an option, and end with a full stop."""
    first = text.partition(" ")[0]
    if not any(sign in first for sign in "-:._"):
        text = text[:1].upper() + text[1:]
    return text.rstrip(".") + "." if text else ""


def in_table(text: str) -> str:
    """Put a paragraph on one line, its signs escaped outside of code."""
    paragraph = " ".join(text.split())
    pieces = paragraph.replace("|", "\\|").split("`")  # every other one is code
    plain = [piece.replace("*", "\\*").replace("_", "\\_") for piece in pieces[::2]]
    pieces[::2] = [linked(piece) for piece in plain]
    return "`".join(pieces)
