"""`rntp data`: prepare and check corpora."""

import argparse
import json
from pathlib import Path
from typing import Any

from rntp.commands.common import config_arguments, load_config, say
from rntp.errors import ConfigError

NAME = "data"
HELP = "prepare and check corpora"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    data_commands = parser.add_subparsers(metavar="COMMAND", required=True)
    prep = data_commands.add_parser("prep", help="raw web pages to verified shards")
    prep.add_argument("config", type=Path)
    prep.add_argument(
        "--on", choices=("here", "ray", "slurm"), default="here", help="a cluster for its tasks"
    )
    prep.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of sbatch, with --on slurm; partition and time are needed",
    )
    prep.set_defaults(run=_data_prep)
    preview = data_commands.add_parser("preview", help="a few pages, and what prep makes of them")
    preview.add_argument("config", type=Path)
    preview.add_argument("--docs", type=int, default=3, metavar="N", help="a source (default 3)")
    preview.add_argument("--json", action="store_true")
    preview.set_defaults(run=_data_preview)
    for name, text, run in (
        ("verify", "check every hash of a corpus", _data_verify),
        ("stats", "what a corpus holds, and what was rejected", _data_stats),
    ):
        command = data_commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path)
        command.add_argument("--json", action="store_true")
        if name == "stats":
            command.add_argument("--plot", type=Path, metavar="FILE", help="picture of the lengths")
        command.set_defaults(run=run)

    index = data_commands.add_parser("index", help="an index of corpora, for the tool `search`")
    index.add_argument("corpora", type=Path, nargs="+", metavar="CORPUS")
    index.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new one, or grown")
    index.add_argument("--piece-tokens", type=int, default=64, metavar="N", help="(default 64)")
    index.add_argument("--json", action="store_true")
    index.set_defaults(run=_data_index)

    grow = data_commands.add_parser(
        "grow", help="more pages for a run, from where the model learns most; goes on after a kill"
    )
    grow.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    grow.add_argument("--frontier", type=Path, required=True, metavar="YAML", help="what to take")
    grow.add_argument("--checkpoint", type=int, metavar="N", help="the newest whole one if unset")
    grow.add_argument("--json", action="store_true")
    grow.set_defaults(run=_data_grow)

    convert = data_commands.add_parser(
        "convert", help="an index of a corpus that is mapped, not read; the corpus stays the same"
    )
    convert.add_argument("folder", type=Path)
    convert.add_argument("--json", action="store_true")
    convert.set_defaults(run=_data_convert)

    simulate = data_commands.add_parser(
        "simulate", help="which contexts which rank would read, without the model"
    )
    config_arguments(simulate)
    simulate.add_argument("--world", type=int, default=1, metavar="N", help="ranks (default 1)")
    simulate.add_argument("--step", type=int, default=1, metavar="N", help="first step (default 1)")
    simulate.add_argument("--steps", type=int, default=1, metavar="N", help="steps (default 1)")
    simulate.add_argument("--json", action="store_true")
    simulate.set_defaults(run=_data_simulate)


def _data_prep(arguments: argparse.Namespace) -> None:
    from functools import partial

    from rntp_data_prep import executors
    from rntp_data_prep.config import PrepConfig
    from rntp_data_prep.prepare import prepare

    from rntp.model.tokenizer import encode, load_tokenizer, tokenizer_digest

    config = PrepConfig.load(arguments.config)
    if arguments.sbatch and arguments.on != "slurm":
        raise ConfigError("--sbatch is for --on slurm")
    execute = None
    if arguments.on == "ray":
        execute = executors.ray(config.workers)
    elif arguments.on == "slurm":
        execute = executors.slurm(config.workers, _pairs(arguments.sbatch))
    tokenizer = load_tokenizer(config.tokenizer)
    prepare(config, partial(encode, tokenizer), tokenizer_digest(tokenizer), say, execute)


def _pairs(texts: list[str]) -> dict[str, str]:
    """NAME=VALUE, or NAME alone. Raises ConfigError where there is no name."""
    found = dict(text.partition("=")[::2] for text in texts)
    if "" in found:
        raise ConfigError("--sbatch wants NAME=VALUE, such as partition=cpu")
    return found


def _data_preview(arguments: argparse.Namespace) -> None:
    from functools import partial

    from rntp_data_prep.config import PrepConfig
    from rntp_data_prep.preview import as_text, preview

    from rntp.model.tokenizer import encode, load_tokenizer

    config = PrepConfig.load(arguments.config)
    rows = preview(config, partial(encode, load_tokenizer(config.tokenizer)), arguments.docs)
    print(json.dumps(rows, indent=2, ensure_ascii=False) if arguments.json else as_text(rows))


def _data_verify(arguments: argparse.Namespace) -> None:
    from rntp.data import Manifest
    from rntp.data.live import refuse_live
    from rntp.errors import DataError
    from rntp.runtime.progress import Bars

    refuse_live(arguments.folder, "rntp data verify")
    manifest = Manifest.load(arguments.folder)
    with Bars() as bars:
        found = manifest.verify(bars)
    if arguments.json:
        print(json.dumps({"digest": manifest.digest, "problems": found}, indent=2))
    if found:
        raise DataError("\n".join(["the corpus is damaged; prepare it again:", *found]))
    if not arguments.json:
        print(f"{manifest.num_docs} documents are whole; digest {manifest.digest}")


def _data_stats(arguments: argparse.Namespace) -> None:
    from rntp.data import Manifest, histogram
    from rntp.data.live import refuse_live
    from rntp.show import facts_table

    refuse_live(arguments.folder, "rntp data stats")
    manifest = Manifest.load(arguments.folder)
    tokens = manifest.num_tokens
    facts: dict[str, Any] = {
        "digest": manifest.digest,
        "tokenizer": manifest.tokenizer_spec,
        "content": manifest.content,
        "token ids beside texts": "yes" if manifest.has_ids else "no",
        "documents": manifest.num_docs,
        "tokens": int(tokens.sum()),
        "shortest document, tokens": int(tokens.min()),
        "longest document, tokens": int(tokens.max()),
    }
    funnel = {f"pages: {reason}": count for reason, count in manifest.funnel.items()}
    facts |= funnel
    lengths = histogram.bins(tokens)
    if arguments.plot:
        histogram.plot(lengths, arguments.plot)
    if arguments.json:
        print(json.dumps({**facts, "lengths": lengths}, indent=2))
    else:
        print(f"{facts_table(facts)}\n{histogram.as_text(lengths)}")


def _data_index(arguments: argparse.Namespace) -> None:
    from rntp.data import Manifest
    from rntp.data.live import refuse_live
    from rntp.model.tokenizer import load_tokenizer
    from rntp.runtime.progress import Bars
    from rntp.show import facts_table
    from rntp.tools.index.build import build, by_tokens

    size, facts = arguments.piece_tokens, None
    for folder in arguments.corpora:
        refuse_live(folder, "rntp data index")
        manifest = Manifest.load(folder)
        cut = by_tokens(load_tokenizer(manifest.tokenizer_spec), size)
        with Bars() as bars:
            facts = build(manifest, arguments.out, cut, piece_tokens=size, progress=bars)
    assert facts is not None
    found: dict[str, Any] = {
        "digest": facts.digest,
        "tokenizer": facts.tokenizer,
        "tokens of a piece": facts.piece_tokens,
        "documents": facts.extent.documents,
        "pieces": facts.extent.pieces,
        "bytes of text": facts.extent.text_bytes,
    }
    print(json.dumps(found, indent=2) if arguments.json else facts_table(found))


def _data_grow(arguments: argparse.Namespace) -> None:
    from rntp_data_prep.packages import module

    module("datatrove")
    from rntp.grow.command import go_on, grow
    from rntp.grow.table import growth_table

    facts = grow(arguments.run_dir, arguments.frontier, arguments.checkpoint, say)
    print(json.dumps(facts, indent=2) if arguments.json else growth_table(facts))
    say(f"train on with the config of {arguments.run_dir} and {go_on(facts)}")


def _data_convert(arguments: argparse.Namespace) -> None:
    from rntp.data import Manifest
    from rntp.data.convert import convert
    from rntp.data.live import refuse_live
    from rntp.runtime.progress import Bars
    from rntp.show import facts_table

    refuse_live(arguments.folder, "rntp data convert")
    with Bars() as bars:
        convert(arguments.folder, bars)
    manifest = Manifest.load(arguments.folder)
    found: dict[str, Any] = {
        "digest": manifest.digest,
        "documents": manifest.num_docs,
        "shards": len(manifest.shards),
        "bytes of the index": sum(facts.bytes for facts in manifest.index_files.values()),
    }
    print(json.dumps(found, indent=2) if arguments.json else facts_table(found))


def _data_simulate(arguments: argparse.Namespace) -> None:
    from rntp.data.simulate import simulate
    from rntp.show import simulation_table

    if min(arguments.world, arguments.step, arguments.steps) < 1:
        raise ConfigError("--world, --step and --steps count from 1")
    steps = range(arguments.step, arguments.step + arguments.steps)
    facts = simulate(load_config(arguments), steps, arguments.world)
    print(json.dumps(facts, indent=2) if arguments.json else simulation_table(facts))
