"""`rntp read`: a text read by a trained model, with what it thought and what that gained."""

import argparse
import json
from pathlib import Path
from typing import Any

from rntp.commands.common import say

NAME = "read"
HELP = "read a text with a trained model: where it thought, what, and what that gained"


def reader_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a reader wants to know; `generate` has the same."""
    parser.add_argument(
        "model", metavar="MODEL", help="an exported folder (rntp ckpt export), or any model spec"
    )
    parser.add_argument(
        "--think",
        metavar="RULE",
        help="where to think: never, every:N tokens, entropy:X nats of the next token, gate or "
        "gate:PRICE (see rntp gate); default entropy:2, or at the end of every piece for a model "
        "that carries a memory (reading.piece)",
    )
    parser.add_argument(
        "--between", type=int, default=16, metavar="N", help="tokens between thoughts (default 16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default 0)")
    parser.add_argument(
        "--tools",
        type=_tools,
        metavar="YAML",
        help="tools that thoughts may call, as thought.tools.use has them, where they are not "
        "those of the run: '{search: {index: build/index}}'; '{}' for none",
    )


def _tools(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} has no names; write {{search: {{index: DIR}}}}")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    reader_arguments(parser)
    parser.add_argument("file", type=Path, metavar="FILE", help="a text in UTF-8")
    parser.add_argument(
        "--html", type=Path, metavar="OUT", help="write a page to open in a browser"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="B",
        help="with --think gate: at most so many thought tokens a token of the text; the price "
        "that meets it is found and told",
    )
    parser.add_argument("--json", action="store_true", help="print thoughts and gains as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print the text with its thoughts."""
    from dataclasses import asdict

    from rntp.errors import ConfigError
    from rntp.reader import Reader
    from rntp.reader.when import parse_when, usual
    from rntp.runtime.files import write_text_atomic

    rule, model = arguments.think or usual(arguments.model), arguments.model
    if arguments.budget is not None and (rule != "gate" or arguments.budget < 0):
        raise ConfigError("--budget B, 0 or more, goes with --think gate, whose price it finds")
    when = parse_when(rule, model, arguments.between)
    text = arguments.file.read_text(encoding="utf-8", errors="replace")
    reader = Reader(model, seed=arguments.seed, tools=arguments.tools)
    if arguments.budget is not None:
        price = reader.price(text, arguments.budget, least=arguments.between)
        say(f"{price:.4g} nats a thought token keeps within the budget (--think gate:{price:.4g})")
        when = parse_when(f"gate:{price!r}", model, arguments.between)
    page = reader.read(text, when)
    if arguments.html:
        write_text_atomic(arguments.html, page.html(arguments.file.name))
        say(f"written to {arguments.html}")
    if arguments.json:
        thoughts = [{**asdict(thought), "gain": thought.gain} for thought in page.thoughts]
        print(json.dumps({**page.facts(), "each": thoughts}, indent=2, ensure_ascii=False))
        return
    print(page.text())
    say(page.summary())
