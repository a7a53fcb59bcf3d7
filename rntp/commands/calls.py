"""`rntp calls`: pages with calls of tools by fixed rules, to teach calling before any is drawn."""

import argparse
import json

from rntp.commands.common import load_config, made_corpus_arguments

NAME = "calls"
HELP = "useful calls of tools as shards, to learn to call before any is sampled; resumes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    made_corpus_arguments(parser)
    parser.add_argument(
        "--rules",
        default="last_words,rare_words",
        metavar="NAME,…",
        help="what proposes calls: last_words, rare_words (search), expression (python)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.02,
        metavar="NATS",
        help="a call is written if it gains more than this, nats a token (default 0.02)",
    )
    parser.add_argument(
        "--bare",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of the positions that are left without a thought (default 0.2)",
    )
    parser.add_argument(
        "--unscored",
        action="store_true",
        help="write any call that has a result, without running the model: to learn to read on "
        "behind results first",
    )
    parser.add_argument(
        "--kinds",
        default="read,bare,write",
        metavar="NAME,…",
        help="with reading.window, the documents of a position: read (behind a call), bare (the "
        "same without), write (a call behind the page)",
    )
    parser.add_argument("--json", action="store_true", help="print provenance as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Write the corpus, and print what is in it."""
    from rntp.show import facts_table
    from rntp.traces.calls import Wish, write_calls

    wish = Wish(
        arguments.rules.split(","),
        arguments.contexts,
        None if arguments.unscored else arguments.margin,
        arguments.bare,
        arguments.kinds.split(","),
    )
    facts = write_calls(load_config(arguments), arguments.out, wish)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    shown = {
        key: facts[key] for key in ("positions", "calls", "declined", "left_bare", "documents")
    }
    shown |= {f"calls, {rule}": n for rule, n in facts["by_rule"].items()}
    if facts["gain/mean"] is not None:
        shown["gain of a written call, nats a token"] = f"{facts['gain/mean']:+.3f}"
    print(facts_table(shown))
    print(
        f"written to {arguments.out}; train on it with thought.thoughts_per_position: 0 and "
        f"data.context_tokens: {facts['longest']}"
    )
