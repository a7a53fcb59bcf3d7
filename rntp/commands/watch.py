"""`rntp watch`: a run as it runs, in the terminal."""

import argparse
import sys
import time
from pathlib import Path

NAME = "watch"
HELP = "a running run in the terminal: progress, curves, thoughts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--once", action="store_true", help="print one frame and stop, as without a terminal"
    )
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="SECONDS", help="between looks (default 2)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Show the run until it has finished. Ctrl-C leaves with exit code 130; the run goes on."""
    from rich.console import Console
    from rich.live import Live

    from rntp.report.watch_frame import frame
    from rntp.report.watched import Watched

    watched = Watched(arguments.run_dir)
    console = Console()
    try:
        watched.refresh()
        if not arguments.once and console.is_terminal:
            with Live(
                frame(watched, console), console=console, screen=True, auto_refresh=False
            ) as live:
                while not watched.finished:
                    time.sleep(max(0.1, arguments.every))
                    watched.refresh()
                    live.update(frame(watched, console), refresh=True)
        # The last frame stays on the screen, and is all there is without a terminal.
        console.print(frame(watched, console))
    except KeyboardInterrupt:
        sys.exit(130)
