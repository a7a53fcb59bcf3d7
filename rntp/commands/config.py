"""`rntp config`: show, validate or describe a config."""

import argparse
import json
import sys

from rntp.commands.common import config_arguments, load_config

NAME = "config"
HELP = "show, validate, or describe a config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    config_commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text, run in (
        ("show", "print the resolved config", _config_show),
        ("validate", "check a config and print its warnings", _config_validate),
    ):
        command = config_commands.add_parser(name, help=text)
        config_arguments(command)
        command.set_defaults(run=run)
    schema = config_commands.add_parser("schema", help="print the JSON schema, for editors")
    schema.set_defaults(run=_config_schema)


def _config_show(arguments: argparse.Namespace) -> None:
    print(load_config(arguments).to_yaml(), end="")


def _config_validate(arguments: argparse.Namespace) -> None:
    config = load_config(arguments)
    from rntp.training.preflight import check_names

    check_names(config)
    for warning in config.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{arguments.config} is valid; digest {config.digest()[:16]}")


def _config_schema(arguments: argparse.Namespace) -> None:
    from rntp.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))
