"""`rntp generate`: write on behind a prompt, with thoughts on the way."""

import argparse
import sys

from rntp.commands.read import reader_arguments

NAME = "generate"
HELP = "write on behind a prompt with a trained model, thinking on the way"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    reader_arguments(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="- reads standard input")
    parser.add_argument(
        "--tokens", type=int, default=200, metavar="N", help="to write at most (default 200)"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of what is written (default 1)"
    )
    parser.add_argument("--silent", action="store_true", help="do not show thoughts")


def run(arguments: argparse.Namespace) -> None:
    """Print pieces as they come; thoughts stand in ⟦…⟧."""
    from rntp.errors import ConfigError
    from rntp.reader import Reader
    from rntp.reader.when import parse_when, usual

    if arguments.temperature <= 0:
        raise ConfigError("--temperature must be above 0")
    when = parse_when(arguments.think or usual(arguments.model), arguments.model, arguments.between)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    reader = Reader(arguments.model, seed=arguments.seed, tools=arguments.tools)
    print(prompt, end="", flush=True)
    for piece in reader.generate(
        prompt, when, tokens=arguments.tokens, temperature=arguments.temperature
    ):
        if piece.kind == "text":
            print(piece.text, end="", flush=True)
        elif not arguments.silent:
            print(f" ⟦{' '.join(piece.text.split())}⟧", end="", flush=True)
    print()
