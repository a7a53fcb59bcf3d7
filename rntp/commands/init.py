"""`rntp init`: write a commented config and preparation file that run."""

import argparse
import glob
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from rntp.errors import ConfigError

NAME = "init"
HELP = "write a commented config and preparation file that run"

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
REWARD = "log_ratio"
FILES = ("prep.yaml", "config.yaml")
# Tokens of an answer, for schemes that grade one.
ANSWER = "  answer_tokens: 8         # written after the thought, for the scheme to grade\n"

Ask = Callable[[str], str]


@dataclass(frozen=True)
class Answers:
    """What the two files are made from. pages: paths and globs from `folder`, URLs, hf:NAME."""

    folder: Path
    model: str
    pages: tuple[str, ...]
    reward: str
    steps: int

    @property
    def name(self) -> str:
        """Name of the run: that of the folder."""
        return self.folder.resolve().name or "run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rntp init`."""
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path(), metavar="FOLDER", help="default: this one"
    )
    parser.add_argument("--model", help=f"as model.spec of a config (default {MODEL})")
    parser.add_argument(
        "--pages",
        action="append",
        metavar="PAGES",
        help="file, glob in quotes, URL or hf:NAME; may be repeated",
    )
    parser.add_argument("--reward", help=f"reward scheme (default {REWARD})")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument("--yes", action="store_true", help="ask nothing, take the defaults")


def run(arguments: argparse.Namespace) -> int:
    """Write the two files and print what to do next; returns the exit code."""
    refuse_existing(arguments.folder)
    asks = sys.stdin.isatty() and not arguments.yes
    answers = collect(arguments, input if asks else None)
    write(answers)
    print(next_commands(answers))
    for page in missing_pages(answers):
        print(f"no file is named {page} yet, seen from {answers.folder}", file=sys.stderr)
    return 0


def collect(arguments: argparse.Namespace, ask: Ask | None) -> Answers:
    """Take the flags, and ask for what they leave open. ask: None asks nothing.

    Raises ConfigError where pages are named neither way.
    """
    folder = arguments.folder
    model = arguments.model or _asked(
        ask, "Model (hub id, folder, GGUF file or package:NAME)", MODEL
    )
    pages = arguments.pages or shlex.split(_asked(ask, "Pages (files, globs, URLs or hf:NAME)", ""))
    if not pages:
        raise ConfigError(
            "rntp init has to know which pages to train on: --pages 'pages/*.html' (.warc.gz, "
            ".jsonl, .parquet, .txt, … as well, and hf:NAME)"
        )
    reward = arguments.reward or _asked(ask, "Reward scheme", REWARD)
    return Answers(
        folder=folder,
        model=_from(folder, model) if Path(model).expanduser().exists() else model,
        pages=tuple(page if ":" in page else _from(folder, page) for page in pages),
        reward=reward,
        steps=arguments.steps,
    )


def write(answers: Answers) -> None:
    """Write prep.yaml and config.yaml, both checked first.

    Raises ConfigError where one of them is there already, or a setting cannot be used.
    """
    folder = answers.folder
    refuse_existing(folder)
    texts = {name: fill(name, answers) for name in FILES}
    _check(texts)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def refuse_existing(folder: Path) -> None:
    """Raise ConfigError where a folder has one of the files."""
    if there := [name for name in FILES if (folder / name).exists()]:
        raise ConfigError(
            f"{folder} has {' and '.join(there)} already, and rntp init overwrites nothing; choose "
            "another folder"
        )


def missing_pages(answers: Answers) -> list[str]:
    """List the paths and globs that name no file, as they are written."""
    local = [page for page in answers.pages if ":" not in page]
    return [p for p in local if not glob.glob(str(answers.folder / p), recursive=True)]


def fill(name: str, answers: Answers) -> str:
    """Fill in a template."""
    from rntp import rewards

    needs = rewards.NEEDS.get(answers.reward)
    template = resources.files("rntp.commands").joinpath("templates", name)
    return Template(template.read_text(encoding="utf-8")).substitute(
        sources=_yaml(list(answers.pages)),
        model=_yaml(answers.model),
        name=_yaml(answers.name),
        run_dir=_yaml(f"runs/{answers.name}"),
        steps=answers.steps,
        reward=_yaml(answers.reward),
        answer=ANSWER if needs and needs.answers else "",
    )


def next_commands(answers: Answers) -> str:
    """Say what was written and which commands follow."""
    folder = answers.folder
    cd = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    lines = [
        *cd,
        "rntp data prep prep.yaml              # pages to a verified corpus",
        "rntp train config.yaml --dry-run      # sizes, memory and time; nothing is written",
        "rntp train config.yaml                # train, or go on",
    ]
    wrote = " and ".join(str(folder / name) for name in FILES)
    return "\n".join([f"wrote {wrote}. Next:", *(f"  {line}" for line in lines)])


def _asked(ask: Ask | None, question: str, default: str) -> str:
    if ask is None:
        return default
    try:
        return ask(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
    except EOFError:
        return default


def _from(folder: Path, path: str) -> str:
    """Write a path as it is seen from a folder; absolute ones stay."""
    path = os.path.expanduser(path)
    return path if os.path.isabs(path) else os.path.relpath(path, folder)


def _yaml(value: str | Sequence[str]) -> str:
    """Write a value in YAML, on one line."""
    import yaml

    text = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True)
    return text.strip()[1:-1]


def _check(texts: dict[str, str]) -> None:
    """Raise ConfigError where a run or a preparation would refuse its file."""
    import yaml

    from rntp.config import Config
    from rntp.training.preflight import check_names

    check_names(Config.parse(yaml.safe_load(texts["config.yaml"]), source="config.yaml"))
