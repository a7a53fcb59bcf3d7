"""The command line: a list of commands, and what their errors become. Heavy modules load inside of
the commands.

Exit codes: 0 ok · 1 unexpected · 2 usage or config · 3 data · 4 checkpoint · 5 preempted, resume
me · 6 diverged.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from rntp import __version__
from rntp.commands import (
    ablate,
    bench,
    calls,
    ckpt,
    completion,
    config,
    data,
    doctor,
    evaluate,
    gate,
    generate,
    init,
    judge,
    memories,
    plan,
    read,
    report,
    sample,
    soup,
    traces,
    train,
    watch,
)
from rntp.errors import RntpError, is_out_of_memory

COMMANDS = (
    *(
        init,
        train,
        sample,
        watch,
        evaluate,
        ablate,
        soup,
        traces,
        memories,
        calls,
        judge,
        report,
        gate,
        read,
        generate,
        config,
        data,
        ckpt,
        bench,
        plan,
    ),
    *(doctor, completion),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rntp`."""
    arguments = build_parser().parse_args(argv)
    # Bars of downloads and of loading weights are for a terminal, and of one rank.
    if not (sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries; what fails is told below
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rntp").setLevel(logging.INFO)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who read along has seen enough: `rntp … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except RntpError as error:
        if not error.agreed or os.environ.get("RANK", "0") == "0":
            print(f"rntp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"rntp: {error}; check the path, its permissions and the free space", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"rntp: there is not enough memory ({(str(error) or 'MemoryError').splitlines()[0]}); "
            "lower parallel.tokens_per_microbatch, rollout.docs_per_batch or data.context_tokens, "
            "or take a smaller model; `rntp train CONFIG --dry-run` estimates what a run takes",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("rntp: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(5)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; each adds its own arguments."""
    parser = argparse.ArgumentParser(
        prog="rntp", description="Reasoning next-token prediction on ordinary web text."
    )
    parser.add_argument("--version", action="version", version=f"rntp {__version__}")
    parser.set_defaults(root=parser)  # for what describes the parser itself
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        own = parsers.add_parser(command.NAME, help=command.HELP)
        command.add_arguments(own)
        if hasattr(command, "run"):  # a group of commands has set one for each
            own.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    main()
