"""`rntp traces`: from a run's rollouts to a file or a corpus, with its provenance beside it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rntp import __version__
from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.errors import ConfigError, DataError
from rntp.model.tokenizer import add_marker, load_tokenizer, token_strings
from rntp.run import folder as run_folder
from rntp.run.log import read_manifest, read_rollouts
from rntp.run.rollout_files import rollout_files
from rntp.runtime.files import json_lines, write_bytes_atomic, write_json
from rntp.traces.parquet import check_parquet, write_parquet
from rntp.traces.select import FIELDS, OVERLAP_NGRAM, Row, Wanted, select
from rntp.traces.shards import write_shards

Say = Callable[[str], None]


def export_traces(
    run_dir: Path, out: Path, wanted: Wanted, *, shards: bool, mixed: bool = False, say: Say
) -> dict[str, Any]:
    """Write the wanted thoughts to `out`: .jsonl, .parquet, or with `shards` a corpus folder.

    mixed: with as many plain pages in that corpus.
    Returns the provenance that is written beside it (FILE.meta.json; traces.json in a corpus):
    digests of config, corpus and tokenizer, commit, filter, and how many rows went where. Raises
    ConfigError, and DataError where shards are wanted and the run's corpus is not there.
    """
    if wanted.per_position < 1 or not 0 <= wanted.max_overlap <= 1:
        raise ConfigError("--per-position is at least 1, and --max-overlap a share from 0 to 1")
    if mixed and not shards:
        raise ConfigError("--mixed puts plain pages into a corpus; give --shards, too")
    _check_out(out, shards)
    config = run_folder.load_config(run_dir)
    manifest = read_manifest(run_dir)
    tokenizer = load_tokenizer(config.model.spec)
    for marker in (config.model.think_open, config.model.think_close):
        add_marker(tokenizer, marker)
    funnel: Counter[str] = Counter()
    rows = list(_rows(run_dir, wanted, tokenizer, funnel))
    if not rows:
        raise ConfigError(f"no thought of {run_dir} is wanted ({_told(funnel)}); {_remedy(funnel)}")
    facts = {
        "rntp": __version__,
        "run": config.run.name,
        "model": config.model.spec,
        "config_digest": manifest["config_digest"],
        "data_digest": manifest["data_digest"],
        "tokenizer_digest": manifest["tokenizer_digest"],
        "commit": (manifest.get("git") or {}).get("commit"),
        "min_gain": wanted.min_gain,
        "max_overlap": wanted.max_overlap,
        "per_position": wanted.per_position,
        "unclosed": wanted.unclosed,
        "overlap_ngram": OVERLAP_NGRAM,
        "funnel": dict(funnel),
    }
    if shards:
        facts["plain_pages"] = len(rows) if mixed else 0
        say(f"writing {len(rows) + facts['plain_pages']} documents to {out}")
        _write_corpus(out, rows, config, tokenizer, facts)
        return facts
    facts["fields"] = FIELDS
    told = [{name: row[name] for name in FIELDS} for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".parquet":
        write_parquet(out, told)
    else:
        write_bytes_atomic(out, json_lines(told))
    write_json(out.with_name(f"{out.name}.meta.json"), facts)
    return facts


def _rows(
    run_dir: Path, wanted: Wanted, tokenizer: PreTrainedTokenizerBase, funnel: Counter[str]
) -> Iterator[Row]:
    """The wanted rows of all steps, in order."""

    def strings(ids: Sequence[int]) -> list[str]:
        return token_strings(tokenizer, torch.tensor(ids, dtype=torch.int64))

    for step in rollout_files(run_dir):
        for row in select(read_rollouts(run_dir, step), wanted, strings, funnel):
            yield {"step": step, **row}


def _write_corpus(
    out: Path,
    rows: Sequence[Row],
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    facts: dict[str, Any],
) -> None:
    manifest = open_data(config)
    if manifest.digest != facts["data_digest"]:
        raise DataError(
            f"{config.data.source} is not the corpus that the run read ({manifest.digest[:16]} "
            f"here, {str(facts['data_digest'])[:16]} there); restore it, or write a .jsonl file"
        )
    corpus = open_corpus(config, manifest, tokenizer)
    write_shards(out, rows, corpus, config, tokenizer, facts=facts, funnel=facts["funnel"])


def _check_out(out: Path, shards: bool) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists; choose another name or remove it")
    if shards:
        return
    if out.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(
            f"{out}: the ending says the form; name it .jsonl or .parquet, or pass --shards for a "
            "corpus folder"
        )
    if out.suffix == ".parquet":
        check_parquet()


def _remedy(funnel: Counter[str]) -> str:
    """What to change, by what became of most of the thoughts."""
    remedies = {
        "not closed": "take those that were cut at their longest with --unclosed, or raise "
        "thought.thought_tokens",
        "gain too small": "lower --min-gain",
        "says the continuation": "raise --max-overlap",
    }
    reasons = [reason for reason, _ in funnel.most_common() if reason in remedies]
    return remedies[reasons[0]] if reasons else "train further first"


def _told(funnel: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in funnel.items()) or "it has no rollouts"
