"""`rntp eval`: think and no-think loss on held-out pages, or tasks of lm-evaluation-harness."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rntp.commands.common import numbers, say, set_argument
from rntp.errors import ConfigError

NAME = "eval"
HELP = "think and no-think loss on held-out pages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("target", type=Path, help="a run folder, or a config for its base model")
    parser.add_argument("--checkpoint", type=int, help="step; default: the newest")
    set_argument(parser, ". Of a run: evaluation.*, run.seed, parallel.* or rollout.docs_per_batch")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    parser.add_argument("--json", action="store_true", help="print facts as JSON")
    parser.add_argument(
        "--pages",
        type=int,
        metavar="N",
        help="instead, read N held-out pages from start to end: piece by piece with a memory, or, "
        "without reading.window, with thoughts where rules want them",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="S",
        help="tokens between the places that rules choose from (default 4)",
    )
    parser.add_argument(
        "--gate",
        type=Path,
        metavar="MODEL",
        help="exported folder whose gate says where to think (rntp gate); default: the run's own",
    )
    parser.add_argument(
        "--price",
        type=float,
        metavar="NATS",
        help="of a thought token: one more bound of the gate, beside 0 (default 0)",
    )
    parser.add_argument(
        "--seen",
        action="store_true",
        help="also read the pages with the gate's thoughts, at that price, left in them",
    )
    parser.add_argument(
        "--piece", type=int, metavar="W", help="tokens of a piece; default: reading.piece"
    )
    parser.add_argument(
        "--page-tokens", type=int, metavar="L", help="tokens of a page; longer ones are cut"
    )
    parser.add_argument(
        "--parallel",
        type=int,
        metavar="K",
        help="instead, read up to K thoughts of a position together",
    )
    parser.add_argument(
        "--lengths",
        type=numbers,
        default=[],
        metavar="N,…",
        help="with --parallel: the same thoughts closed after N tokens as well",
    )
    parser.add_argument(
        "--tasks",
        metavar="NAME,…",
        help="instead, tasks of lm-evaluation-harness, with and without a thought before answers "
        "(extra `eval`)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="questions of a task")
    parser.add_argument(
        "--tasks-folder", type=Path, metavar="DIR", help="task definitions of your own"
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure the target, and print the table."""
    if arguments.tasks:
        if arguments.overrides:
            raise ConfigError("--set does not go with --tasks; leave it out")
        _evaluate_tasks(arguments)
        return
    if arguments.limit is not None or arguments.tasks_folder is not None:
        raise ConfigError("--limit and --tasks-folder go with --tasks; name the tasks")
    if arguments.parallel is not None and arguments.pages is not None:
        raise ConfigError("--parallel and --pages measure different things; give one of them")
    if arguments.parallel is None and arguments.lengths:
        raise ConfigError("--lengths goes with --parallel; say how many thoughts")
    of_pages = ("piece", "page_tokens", "stride", "gate", "price")
    given = arguments.seen or any(getattr(arguments, name) is not None for name in of_pages)
    if arguments.pages is None and given:
        raise ConfigError(
            "--piece, --page-tokens, --stride, --gate, --price and --seen go with --pages; say how "
            "many"
        )
    if arguments.parallel is not None:
        _evaluate_parallel(arguments)
        return
    if arguments.pages is not None:
        _evaluate_pages(arguments)
        return
    from rntp.evaluation import evaluate_target
    from rntp.runtime.memory import keep_freed_memory
    from rntp.show import evaluation_table

    keep_freed_memory()
    result = evaluate_target(
        arguments.target, arguments.checkpoint, say=say, overrides=arguments.overrides
    )
    _show(arguments, result, evaluation_table)


def _show(
    arguments: argparse.Namespace,
    result: dict[str, Any],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Write what was found where it was asked for, and print it without its pages."""
    from rntp.runtime.files import write_json

    if arguments.out:
        write_json(arguments.out, result)
    facts = {key: value for key, value in result.items() if key != "pages"}
    print(json.dumps(facts, indent=2) if arguments.json else table(facts))


def _evaluate_pages(arguments: argparse.Namespace) -> None:
    from rntp.evaluation.place_tables import frontier_table
    from rntp.evaluation.target import evaluate_everywhere, evaluate_pages, reads_pieces
    from rntp.runtime.memory import keep_freed_memory
    from rntp.show import pages_table

    sizes = (arguments.pages, arguments.piece, arguments.page_tokens, arguments.stride)
    if any(value is not None and value < 1 for value in sizes):
        raise ConfigError("--pages, --piece, --page-tokens and --stride must be 1 or more")
    keep_freed_memory()
    by_pieces = arguments.piece is not None or reads_pieces(arguments.target, arguments.overrides)
    of_places = (arguments.stride, arguments.gate, arguments.price)
    if by_pieces and (arguments.seen or any(value is not None for value in of_places)):
        raise ConfigError(
            "--stride, --gate, --price and --seen: pages are read by pieces here; leave them out"
        )
    if not by_pieces and arguments.page_tokens is not None:
        raise ConfigError(
            "--page-tokens: pages are read in contexts of data.context_tokens here; leave it out"
        )
    target = (arguments.target, arguments.checkpoint)
    if by_pieces:
        facts = evaluate_pages(
            *target,
            count=arguments.pages,
            piece=arguments.piece,
            page_tokens=arguments.page_tokens,
            say=say,
            overrides=arguments.overrides,
        )
    else:
        stride = arguments.stride or 4
        facts = evaluate_everywhere(
            *target,
            count=arguments.pages,
            stride=stride,
            say=say,
            gate_of=arguments.gate,
            price=arguments.price or 0.0,
            seen=arguments.seen,
            overrides=arguments.overrides,
        )
    _show(arguments, facts, pages_table if by_pieces else frontier_table)


def _evaluate_parallel(arguments: argparse.Namespace) -> None:
    from rntp.evaluation.place_tables import parallel_table
    from rntp.evaluation.target import evaluate_parallel
    from rntp.runtime.memory import keep_freed_memory

    if arguments.parallel < 1:
        raise ConfigError("--parallel must be 1 or more")
    keep_freed_memory()
    facts = evaluate_parallel(
        arguments.target,
        arguments.checkpoint,
        thoughts=arguments.parallel,
        lengths=arguments.lengths,
        say=say,
        overrides=arguments.overrides,
    )
    _show(arguments, facts, parallel_table)


def _evaluate_tasks(arguments: argparse.Namespace) -> None:
    from rntp.evaluation.tasks import evaluate_tasks
    from rntp.runtime.memory import keep_freed_memory
    from rntp.show import tasks_table

    keep_freed_memory()
    facts = evaluate_tasks(
        arguments.target,
        arguments.tasks.split(","),
        step=arguments.checkpoint,
        limit=arguments.limit,
        folder=arguments.tasks_folder,
        say=say,
    )
    _show(arguments, facts, tasks_table)
