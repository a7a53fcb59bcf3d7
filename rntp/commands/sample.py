"""`rntp sample`: sample thoughts for whichever run has a store."""

import argparse

NAME = "sample"
HELP = "sample thoughts for the run of a store: joins by starting, leaves by being killed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "store", metavar="STORE", help="folder or URL: rollout.samplers.store of the run"
    )
    parser.add_argument("--name", help="in messages; by default the host's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="instead of model.device")
    parser.add_argument(
        "--while-parent", type=int, metavar="PID", help="end once this process is not the parent"
    )


def run(arguments: argparse.Namespace) -> None:
    """Sample until the run is done. Raises ConfigError where this machine cannot."""
    import os
    from pathlib import Path

    from rntp.commands.common import say
    from rntp.errors import Preempted
    from rntp.rollout.store.files import open_files
    from rntp.rollout.store.program import own_name, run_sampler
    from rntp.runtime.signals import StopRequest

    parent, store = arguments.while_parent, arguments.store

    with StopRequest() as stop:

        def check() -> None:
            stop.check()
            if parent is not None and os.getppid() != parent:
                raise Preempted("the run that started this sampler has ended")

        try:
            run_sampler(
                open_files(store if "://" in store else Path(store)),
                own_name(arguments.name),
                say=say,
                check=check,
                device=arguments.device,
            )
        except Preempted as end:
            say(f"{end}; what it had taken is sampled by others")
