"""Draw the picture of a token tree as an SVG file: `token_tree.py [--check]`.

The gains in the picture are made up; everything else is how `rntp.TokenTree` lays a document out.
"""

import argparse
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURE = Path(__file__).parents[1] / "images" / "token_tree.svg"

CHARACTER = 7.6  # width of a monospace character at 12.5 px
PAD, GAP, HEIGHT = 7, 3, 26
LEFT, WIDTH = 20, 800


@dataclass(frozen=True)
class Box:
    """text: of one token. kind: class of the style sheet. note: number printed below."""

    text: str
    kind: str
    note: str = ""

    @property
    def width(self) -> float:
        """Width in pixels."""
        return len(self.text) * CHARACTER + 2 * PAD


def words(text: str, kind: str) -> list[Box]:
    """Split a text into one box a word."""
    return [Box(word, kind) for word in text.split()]


def thought(text: str, *continuation: tuple[str, float]) -> list[Box]:
    """Lay out one branch: markers, thought, and the continuation's words with their gains."""
    marks = [Box("<think>", "mark"), *words(text, "thought"), Box("</think>", "mark")]
    held_out = [
        Box(word, "better" if gain > 0 else "worse", f"{gain:+.1f}".replace("-", "−"))
        for word, gain in continuation
    ]
    return marks + held_out


CONTEXT = words("Parcels over the bridge go by boat . Letters to Lorn go by cart .", "context")
P1, P2 = 5, 12  # positions: the index of the first token that is held out

BRANCHES = [
    (
        P1,
        [
            thought("no road there", ("by", 0.1), ("boat", 1.4), (".", 0.1)),
            thought("green is a colour", ("by", -0.1), ("boat", -0.3), (".", -0.1)),
        ],
    ),
    (
        P2,
        [
            thought("Lorn is on land", ("by", 0.2), ("cart", 0.9), (".", 0.1)),
        ],
    ),
]

STYLE = """
  text { font: 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #1f2430 }
  .label, .note { font: 12.5px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #57606a }
  .note { font-size: 11px; text-anchor: middle }
  rect.page { fill: #ffffff }
  rect.context { fill: #e4e8ee; stroke: #b4bdc9 }
  rect.held { fill: #ffffff; stroke: #b4bdc9; stroke-dasharray: 3 2 }
  rect.mark { fill: #ffffff; stroke: #b4bdc9 }
  rect.thought { fill: #dbe7fb; stroke: #8fb2ea }
  rect.better { fill: #bfe8c8; stroke: #58a96c }
  rect.worse { fill: #f6c9c4; stroke: #cf6f66 }
  path { fill: none; stroke: #57606a; stroke-width: 1.4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ef }
    .label, .note { fill: #a5aebb }
    rect.page { fill: #14171d }
    rect.context { fill: #2b313b; stroke: #4b5563 }
    rect.held, rect.mark { fill: #14171d; stroke: #4b5563 }
    rect.thought { fill: #1e3357; stroke: #4874b8 }
    rect.better { fill: #1d4a2b; stroke: #3f8a55 }
    rect.worse { fill: #5a2420; stroke: #a8524a }
    path { stroke: #a5aebb }
  }
"""


def row(boxes: list[Box], x: float, y: float) -> tuple[list[str], list[float]]:
    """Draw boxes from x to the right; also return where each box begins."""
    parts, starts = [], []
    for box in boxes:
        starts.append(x)
        parts.append(
            f'<rect class="{box.kind}" x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" '
            f'height="{HEIGHT}" rx="4"/>'
            f'<text x="{x + PAD:.1f}" y="{y + 17.5:.1f}">{escape(box.text)}</text>'
        )
        if box.note:
            middle = x + box.width / 2
            parts.append(f'<text class="note" x="{middle:.1f}" y="{y + 40:.1f}">{box.note}</text>')
        x += box.width + GAP
    return parts, starts


def mean_gain(boxes: list[Box]) -> float:
    """Average the gains of a branch."""
    gains = [float(box.note.replace("−", "-")) for box in boxes if box.note]
    return sum(gains) / len(gains)


def comparison(boxes: list[Box], group: list[list[Box]]) -> str:
    """Say how a thought does in its group."""
    mean = sum(map(mean_gain, group)) / len(group)
    verdict = "above" if mean_gain(boxes) > mean else "below"
    change = "likelier" if verdict == "above" else "less likely"
    return f"{verdict} its group's mean: {change}"


def label(text: str, x: float, y: float) -> str:
    """Write a line of explanation."""
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def draw() -> str:
    """Draw the whole picture; returns the SVG."""
    top = 46
    parts = [label("context: one document, read once (root of the tree)", LEFT, top - 14)]
    drawn, starts = row(CONTEXT, LEFT, top)
    parts += drawn
    y = top + HEIGHT + 44
    for position, group in BRANCHES:
        stem = starts[position] - GAP / 2
        name = f"position {position}"
        first = y
        indent = LEFT + 40 if position == P1 else LEFT + 240
        for boxes in group:
            parts += row(boxes, indent, y)[0]
            if len(group) > 1:
                parts.append(label(comparison(boxes, group), starts[P2] + 12, y + 17))
            y += 58
        last = y - 58
        middles = [first + HEIGHT / 2 + 58 * n for n in range(len(group))]
        # The stem runs down beside the branches and turns into each of them.
        lane = indent - 14
        turn = first - 26
        parts.append(f'<path d="M{stem:.1f} {top + HEIGHT} V{turn} H{lane} V{middles[-1]}"/>')
        parts += [f'<path d="M{lane} {middle} H{indent - 2}"/>' for middle in middles]
        told = f"{name}: sees the context up to here" if position == P1 else name
        parts.append(label(told, stem + 8, top + HEIGHT + 14))
        y = last + 58 + 30
    legend = y - 6
    for kind, text, x in (
        ("thought", "thought, sampled", LEFT + 40),
        ("better", "continuation: the held-out true tokens, under them the gain in nats", 230),
    ):
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{legend - 11}" width="14" height="14" rx="3"/>'
        )
        parts.append(label(text, x + 20, legend))
    height = legend + 18
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img" aria-label="A token tree">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect class="page" width="{WIDTH}" height="{height:.0f}" rx="8"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Write the picture, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the file is not this")
    if not parser.parse_args().check:
        PICTURE.write_text(draw(), encoding="utf-8")
    elif PICTURE.read_text(encoding="utf-8") != draw():
        sys.exit(f"{PICTURE} is stale: run python {Path(__file__).name}")


if __name__ == "__main__":
    main()
