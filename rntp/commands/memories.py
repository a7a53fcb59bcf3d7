"""`rntp memories`: pages with memories by fixed rules, to teach reading one before writing one."""

import argparse
import json

from rntp.commands.common import load_config, made_corpus_arguments

NAME = "memories"
HELP = "memories by fixed rules as shards, to learn to read one before any is sampled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    made_corpus_arguments(parser)
    parser.add_argument(
        "--rules",
        default="random_piece,bm25_piece,first_tokens",
        metavar="NAME,…",
        help="in turn: first_tokens, last_piece, random_piece, bm25_piece; and what the model "
        "chooses, which runs it on all of them: likely_piece (the one behind which the window is "
        "most likely), best_piece (behind which what follows is)",
    )
    parser.add_argument(
        "--pieces",
        type=int,
        default=32,
        metavar="N",
        help="evenly spaced pieces of a page that these two try (default 32)",
    )
    parser.add_argument(
        "--kinds",
        default="read,bare,write",
        metavar="NAME,…",
        help="documents of a position: read (behind a memory), bare (the same without), write (a "
        "memory behind the page)",
    )
    parser.add_argument("--json", action="store_true", help="print provenance as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Write the corpus, and print what is in it."""
    from rntp.show import facts_table
    from rntp.traces.memories import write_memories

    config = load_config(arguments)
    rules = arguments.rules.split(",")
    kinds = arguments.kinds.split(",")
    facts = write_memories(
        config, arguments.out, rules, arguments.contexts, arguments.pieces, kinds
    )
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    print(facts_table({f"documents, {kind}": n for kind, n in facts["documents"].items()}))
    print(f"written to {arguments.out}; train on it with thought.thoughts_per_position: 0")
