"""`rntp ckpt`: list, verify, export and prune checkpoints."""

import argparse
import json
from pathlib import Path

from rntp.commands.common import say
from rntp.errors import ConfigError

NAME = "ckpt"
HELP = "list, verify, export and prune checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    checkpoint_commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text, run in (
        ("ls", "list checkpoints", _ckpt_ls),
        ("verify", "check every hash", _ckpt_verify),
    ):
        command = checkpoint_commands.add_parser(name, help=text)
        command.add_argument("run_dir", type=Path)
        command.add_argument("--json", action="store_true")
        command.set_defaults(run=run)

    export = checkpoint_commands.add_parser("export", help="write a Hugging Face folder")
    export.add_argument("run_dir", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--checkpoint", type=int, help="step; default: the newest")
    export.set_defaults(run=_ckpt_export)

    prune = checkpoint_commands.add_parser("prune", help="remove all but the newest whole ones")
    prune.add_argument("run_dir", type=Path)
    prune.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="whole checkpoints to keep, every hash checked; default: checkpoint.keep of the run",
    )
    prune.add_argument("--json", action="store_true")
    prune.set_defaults(run=_ckpt_prune)


def _ckpt_ls(arguments: argparse.Namespace) -> None:
    from rntp.run.checkpoint import folders, glance, num_bytes

    _check_run_folder(arguments.run_dir)
    facts = []
    for step, path in folders(arguments.run_dir / "checkpoints"):
        size, wrong = num_bytes(path), glance(path)
        facts.append({"step": step, "path": str(path), "bytes": size, "problems": wrong})
        if not arguments.json:
            damaged = f"  DAMAGED: {'; '.join(wrong)}" if wrong else ""
            print(f"step {step:>8}  {size / 1e9:6.2f} GB  {path}{damaged}")
    if arguments.json:
        print(json.dumps(facts, indent=2))
    elif not facts:
        print(f"no checkpoint in {arguments.run_dir / 'checkpoints'}")


def _ckpt_verify(arguments: argparse.Namespace) -> None:
    from rntp.errors import CheckpointError
    from rntp.run.checkpoint import folders, problems

    _check_run_folder(arguments.run_dir)
    result = {p.name: problems(p) for _, p in folders(arguments.run_dir / "checkpoints")}
    if arguments.json:
        print(json.dumps(result, indent=2))
    damaged = [f"{name}: {'; '.join(found)}" for name, found in result.items() if found]
    if damaged:
        raise CheckpointError("\n".join(["damaged checkpoints:", *damaged]))
    if not result:
        raise CheckpointError(f"there is no checkpoint in {arguments.run_dir / 'checkpoints'}")
    if not arguments.json:
        print(f"{len(result)} checkpoints are whole")


def _check_run_folder(folder: Path) -> None:
    """Raise ConfigError where there is no such folder; what a run of it lacks is told later."""
    if not folder.is_dir():
        raise ConfigError(f"there is no run folder {folder}")


def _ckpt_export(arguments: argparse.Namespace) -> None:
    from rntp.run.export import export

    out = export(arguments.run_dir, arguments.out, arguments.checkpoint, say=say)
    print(f"exported to {out}; its logits are the checkpoint's")


def _ckpt_prune(arguments: argparse.Namespace) -> None:
    from rntp.run.checkpoint import folders, problems, prune
    from rntp.run.folder import load_config, lock

    keep = load_config(arguments.run_dir).checkpoint.keep
    if arguments.keep is not None:
        keep = arguments.keep
    if keep < 1:
        raise ConfigError("--keep counts whole checkpoints and the last one stays; give 1 or more")
    folder = arguments.run_dir / "checkpoints"
    with lock(arguments.run_dir):
        removed = [path.name for path in prune(folder, keep, problems)]
    kept = [path.name for _, path in folders(folder)]
    if arguments.json:
        print(json.dumps({"removed": removed, "kept": kept}, indent=2))
    else:
        print(f"removed: {', '.join(removed) or 'nothing'}; there are: {', '.join(kept) or 'none'}")
