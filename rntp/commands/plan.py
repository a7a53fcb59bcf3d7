"""`rntp plan`: what a run takes on a cluster, before anything is started."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rntp.commands.common import config_arguments, load_config, say

if TYPE_CHECKING:
    from rntp.plan.rates import Rates

NAME = "plan"
HELP = "tokens, FLOP, bytes, hours and money of a run, from one GPU to 10^26 FLOP"
RATES = Path("build/plan/rates.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    config_arguments(parser)
    parser.add_argument(
        "--cluster", type=Path, metavar="FILE", help="YAML; default: one H200 (docs/scale.md)"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="first measure what steps cost on this machine: runs of made-up models, minutes",
    )
    parser.add_argument(
        "--rates",
        type=Path,
        metavar="FILE",
        help=f"what --calibrate measured (it writes to {RATES} by default); without, rates are "
        "assumed from the cluster's data sheet",
    )
    parser.add_argument(
        "--ranks", type=int, default=1, metavar="N", help="of --calibrate: so many processes, too"
    )
    parser.add_argument(
        "--flop", type=float, metavar="N", help="of the whole run, as 1e26, instead of run.steps"
    )
    parser.add_argument("--samplers", type=int, metavar="N", help="devices that only draw thoughts")
    parser.add_argument(
        "--age",
        type=int,
        metavar="N",
        help="updates that thoughts may be old: as many samplers as that takes",
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Plan, and print it. Raises ConfigError for what cannot be."""
    from rntp.plan.budget import Wish, plan
    from rntp.plan.cluster import ONE_H200, Cluster
    from rntp.plan.rates import assumed
    from rntp.plan.text import facts, text, warnings
    from rntp.training.estimate import Shape

    config = load_config(arguments)
    cluster = Cluster.load(arguments.cluster) if arguments.cluster else ONE_H200
    rates = _rates(arguments, config.model.dtype, config.model.device) or assumed(cluster)
    shape = Shape.of_spec(config.model.spec, config.model.sharing)
    wish = Wish(arguments.flop, arguments.samplers, arguments.age)
    found = plan(config, shape, cluster, rates, wish)
    if arguments.json:
        print(json.dumps({**facts(found), "warnings": list(warnings(found))}, indent=2))
        return
    print(text(found))


def _rates(arguments: argparse.Namespace, dtype: str, device: str) -> "Rates | None":
    """Measure rates, or read them, where one of the two is asked for."""
    from rntp.model import pick_device
    from rntp.plan.calibrate import calibrate
    from rntp.plan.rates import Rates
    from rntp.runtime.files import write_json

    if not arguments.calibrate:
        return Rates.load(arguments.rates) if arguments.rates else None
    out: Path = arguments.rates or RATES
    out.parent.mkdir(parents=True, exist_ok=True)
    kind = pick_device(device).type
    rates = calibrate(out, dtype=dtype, device=kind, ranks=arguments.ranks, say=say)
    write_json(out, rates.as_dict())
    say(f"written: {out}")
    return rates
