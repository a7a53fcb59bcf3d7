"""One frame of `rntp watch`: lines of text, made of a run that is watched.

Texts of pages come in as plain text: neither terminal escapes nor rich's markup in them count.
"""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.text import Text

from rntp.report.numbers import MISSING, interval, number, signed
from rntp.report.watched import ALIVE_S, Watched
from rntp.run.log import duration
from rntp.show import printable

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-~=+*#"
_LABEL = 10
_MOST_SPARKS = 60
_TEXT_LINES = 3


def frame(watched: Watched, console: Console) -> Group:
    """Make the lines for a console of its width."""
    width = max(40, console.width)
    blocks = _ASCII_BLOCKS if console.options.ascii_only else _BLOCKS
    lines = [*_head(watched, width), Text("")]
    lines += _curves(watched, width, blocks)
    lines += [Text(""), *_facts(watched, width)]
    for thought in watched.thoughts:
        lines += [Text(""), *_thought(thought, watched.thoughts_step, width)]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


def sparkline(values: Sequence[float | None], width: int, blocks: str = _BLOCKS) -> str:
    """Draw values in so many characters at most, each the mean of as many values; a gap where none
    is there. A line that does not move lies in the middle."""
    size = max(1, -(-len(values) // width))
    means: list[float | None] = []
    for first in range(0, len(values), size):
        known = [value for value in values[first : first + size] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    top = len(blocks) - 1

    def block(mean: float | None) -> str:
        if mean is None:
            return " "
        return blocks[round((mean - low) / (high - low) * top) if high > low else top // 2]

    return "".join(map(block, means))


def _head(watched: Watched, width: int) -> list[Text]:
    done, wanted = watched.done, watched.wanted
    name = one_line(str(watched.field("run", "name") or watched.run_dir.name), width // 2)
    share = done / wanted if wanted else 0.0
    bar = min(30, width // 4)
    full = round(min(1.0, share) * bar)
    head = Text(f"{name}  ", style="bold")
    head.append(f"step {done:,} of {wanted:,}  ", style="not bold")
    head.append("━" * full, style="not bold green")
    head.append("━" * (bar - full), style="not bold bright_black")
    head.append(f"  {share:.0%}  {_eta(watched)}", style="not bold")
    where = Text(one_line(f"{_life(watched)}  {watched.run_dir}", width), style="bright_black")
    return [head, where]


def _eta(watched: Watched) -> str:
    if watched.done >= watched.wanted > 0:
        return "all steps done"
    seconds = watched.eta_s
    return "eta ?" if seconds is None else f"eta {duration(seconds)}"


def _life(watched: Watched) -> str:
    life = watched.life
    if watched.finished:
        return "finished"
    if life is None:
        return "no heartbeat is written"
    if life.seconds > ALIVE_S:
        return f"no sign of life for {duration(life.seconds)}; the same command resumes"
    return f"{life.phase}, sign of life {duration(life.seconds)} ago"


def _curves(watched: Watched, width: int, blocks: str) -> list[Text]:
    if not watched.rows:
        return [Text("no step is done yet")]
    room = min(_MOST_SPARKS, width - _LABEL - 28)
    wanted = (
        ("gain", "gain/mean", "nats a token", True),
        ("reward", "reward/mean", "", True),
        ("no think", "nll/no_think", "nats a token", False),
        ("think", "nll/think", "nats a token", False),
    )
    lines = []
    for label, key, unit, with_sign in wanted:
        values = watched.values(key)
        if all(value is None for value in values):
            continue
        last = signed(values[-1]) if with_sign else number(values[-1])
        line = Text(f"{label:<{_LABEL}}", style="bright_black")
        line.append(f"{last:>8}  ", style="default")
        line.append(f"{sparkline(values, room, blocks)}  ", style="cyan")
        line.append(unit)
        lines.append(line)
    return lines


def _facts(watched: Watched, width: int) -> list[Text]:
    lines = [_labelled("held-out", _held_out(watched), width)]
    parts = watched.parts_s()
    if "step" in parts:
        whole = parts.pop("step")
        shares = [
            f"{name} {seconds:.2f} ({seconds / whole:.0%})"
            for name, seconds in sorted(parts.items(), key=lambda item: -item[1])
            if whole > 0
        ]
        lines.append(_labelled("a step", f"{whole:.2f} s: {', '.join(shares)}", width))
    saved = "nothing yet"
    if watched.checkpoint is not None:
        step, age = watched.checkpoint
        saved = f"step {step:,}, {duration(age)} ago"
    lines.append(_labelled("saved", saved, width))
    lines.append(_labelled("skipped", f"{watched.skipped} steps", width))
    if not watched.warnings:
        lines.append(_labelled("alarms", "none", width))
    for warning in watched.warnings:
        lines.append(_labelled("alarm", warning, width, "yellow"))
    return lines


def _held_out(watched: Watched) -> str:
    found = watched.evaluation
    if found is None:
        return "no evaluation yet"
    gain = f"gain {signed(found.get('gain/mean'))}, 95 % {interval(found.get('gain/ci95'))}"
    told = f"{gain}, after step {found.get('step', MISSING)}"
    first = watched.first_evaluation
    if first is not None and found.get("step", 0) > 0:
        told += f"; before training {signed(first.get('gain/mean'))}"
    return told


def _labelled(label: str, text: str, width: int, style: str = "") -> Text:
    line = Text(f"{label:<{_LABEL}}", style="bright_black")
    line.append(one_line(text, width - _LABEL), style=style or "default")
    return line


def _thought(row: dict, step: int, width: int) -> list[Text]:
    """A head line, the end of what was read, and the thought; each clipped."""
    name = row.get("title") or row.get("document_id", "")
    gain = row.get("gain")
    place = f"step {step}, {one_line(str(name), width // 2)}, token {row.get('position', MISSING)}"
    head = Text(style="bright_black")
    head.append(f"{signed(gain)} nats  ", style=_gain_style(gain))
    head.append(one_line(place, width - cell_len(head.plain)))
    tail = printable(str(row.get("prefix_tail", ""))[-width:])
    tail = " ".join(tail.split())[-(width - 5) :]
    thought = one_line(str(row.get("thought", "")), _TEXT_LINES * (width - 4))
    lines = [head, Text(f"  … {tail}", style="bright_black")]
    for first in range(0, max(1, len(thought)), width - 4):
        lines.append(Text(f"  │ {thought[first : first + width - 4]}"))
    return lines


def _gain_style(gain: float | None) -> str:
    if not gain:
        return "bold"
    return "bold green" if gain > 0 else "bold red"


def one_line(text: str, width: int) -> str:
    """The text on one line of at most so many columns, harmless to a terminal."""
    # A text of megabytes is cut before it is looked through.
    flat = " ".join(printable(text[: 4 * width]).split())
    if cell_len(flat) <= width:
        return flat
    return set_cell_size(flat, width - 1).rstrip() + "…"
