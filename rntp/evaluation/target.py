"""Evaluating what a command names: a run folder's checkpoint, or a config's base model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rntp.config import Config
from rntp.data.corpus import Data, open_corpus, open_data
from rntp.data.live import Live
from rntp.data.manifest import Manifest
from rntp.data.mixture import Mixture
from rntp.data.tasks import TaskSource
from rntp.errors import ConfigError, DataError
from rntp.evaluation.during import read_result
from rntp.evaluation.everywhere import has_room, think_everywhere
from rntp.evaluation.frontier import frontier, gate_places, seen_row
from rntp.evaluation.measure import evaluate, evaluation_places
from rntp.evaluation.page_reading import read_pages
from rntp.evaluation.page_table import page_table
from rntp.evaluation.pages import Page, score_pages
from rntp.evaluation.parallel import together
from rntp.evaluation.provenance import provenance
from rntp.evaluation.seen import read_with_thoughts
from rntp.evaluation.third import check_third
from rntp.evaluation.thoughts_cut import check_lengths, cut
from rntp.gate import Gate
from rntp.model import LanguageModel, cast_parameters
from rntp.model.opening import open_model
from rntp.rollout import no_check
from rntp.rollout.engine import open_engine
from rntp.rollout.tool_calls import serving
from rntp.run import checkpoint
from rntp.run import folder as run_folder
from rntp.run.trained import learnt_gate, open_trained
from rntp.runtime.progress import Bars
from rntp.training.preflight import sharing_notes
from rntp.types import Context

# Fields of a run's config that say how it is measured: where, on what, in what batches.
MEASURED = ("evaluation.", "run.seed", "parallel.", "rollout.docs_per_batch")


def evaluate_target(
    target: Path,
    step: int | None = None,
    *,
    say: Callable[[str], None],
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate a run folder's checkpoint (the newest whole one, or that of `step`), or a config's
    base model.

    overrides: `section.field=value`; of a run's config only what says how it is measured, for the
    rest is what it was trained with. Changes against training are those since the run's start,
    where nothing is overridden. Raises ConfigError, DataError or CheckpointError.
    """
    config, model, manifest, path = _open(target, step, say, overrides)
    reference = read_result(config, 0) if target.is_dir() and not overrides else None
    check_third(config, model.tokenizer)
    corpus = open_corpus(config, manifest, model.tokenizer)
    contexts = corpus.heldout_contexts(config.evaluation.heldout_docs)
    with Bars() as bars:
        found = evaluate(model, contexts, config, reference=reference, progress=bars)
    return {**provenance(config, corpus, _step_of(path)), **found}


def evaluate_pages(
    target: Path,
    step: int | None = None,
    *,
    count: int,
    piece: int | None = None,
    page_tokens: int | None = None,
    say: Callable[[str], None],
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Read `count` held-out pages from their start to their end with a carried memory, beside the
    window alone and everything; see `rntp.evaluation.page_reading`.

    piece: tokens; by default `reading.piece`. page_tokens: where longer pages are cut. overrides
    and errors: as of `evaluate_target`, and ConfigError where the config reads no window.
    """
    config, model, manifest, path = _open(target, step, say, overrides)
    config = _in_pieces(config, piece)
    assert config.reading.piece is not None
    if isinstance(manifest, Live):
        raise ConfigError(
            f"--pages: {config.data.source} is read as it comes, and its pages have no held-out "
            "order; prepare it with `rntp data prep` first"
        )
    if config.data.has_tasks:
        raise ConfigError(
            f"--pages: {config.data.source} has tasks, which are not read piece by piece; name a "
            "config of pages"
        )
    # Windows as long as the longest page begin where it begins.
    longest = max(int(part.num_tokens.max()) for part in _parts(manifest))
    data = config.data.model_copy(update={"context_tokens": longest + 8})
    corpus = open_corpus(config.model_copy(update={"data": data}), manifest, model.tokenizer)
    assert corpus.heldout is not None
    pages: list[Context] = []
    for number in range(corpus.heldout.num_documents):
        page = corpus.heldout[number]
        if len(page) >= 2 * config.reading.piece:
            pages.append(replace(page, token_ids=page.token_ids[:page_tokens]))
        if len(pages) == count:
            break
    if not pages:
        raise DataError(
            f"--pages: none of {corpus.heldout.num_documents} held-out pages has "
            f"{2 * config.reading.piece} tokens, two pieces; lower --piece"
        )
    with Bars() as bars:
        found, spent = read_pages(model, pages, config, progress=bars)
    facts = provenance(config, corpus, _step_of(path))
    return {**facts, **page_table(model, found, spent, config)}


def evaluate_everywhere(
    target: Path,
    step: int | None = None,
    *,
    count: int,
    stride: int,
    say: Callable[[str], None],
    gate_of: Path | None = None,
    price: float = 0.0,
    seen: bool = False,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Think all over `count` held-out pages, and say what rules of where to think make of them; see
    `rntp.evaluation.frontier`.

    stride: tokens between two positions. gate_of: exported folder whose gate decides, in place of
    the one that the run has learnt along. price: nats a thought token, one more bound of the gate.
    seen: read the pages also with the thoughts of the gate at that price left in them. overrides
    and errors: as of `evaluate_target`, and ConfigError where a reading window loses some of a
    page, or thoughts cannot be left.
    """
    config, model, manifest, path = _open(target, step, say, overrides)
    if config.loses_context:
        raise ConfigError(
            "--pages: thoughts here are read behind a window (reading.window), and the next one "
            "begins anew; give --piece, or set reading.piece, to carry them through the page"
        )
    if config.thought.thoughts_per_position == 0:
        raise ConfigError("--pages: thought.thoughts_per_position is 0, so nothing is thought")
    corpus = open_corpus(config, manifest, model.tokenizer)
    contexts = corpus.heldout_contexts(count)
    gate = Gate.beside(str(gate_of)) if gate_of else learnt_gate(path, config) if path else None
    if seen and (gate is None or config.reading.mixing or config.reading.window is not None):
        raise ConfigError(
            "--seen leaves the gate's thoughts in the page, and there is no gate, or thoughts are "
            "read with reading.mixing or in front of reading.window; give --gate, or leave --seen "
            "out"
        )
    with Bars() as bars:
        found = think_everywhere(model, contexts, config, stride=stride, gate=gate, progress=bars)
    if not found:
        raise DataError("--pages: no held-out page has room for a thought")
    bound = price * gate.thought_tokens / gate.horizon if gate else 0.0
    facts = frontier(found, config.run.seed, (0.0, bound))
    if seen:
        fitting = [c for c in contexts if has_room(c, config)]
        places = [gate_places(page, bound) for page in found]
        with Bars() as bars:
            read = read_with_thoughts(model, fitting, places, config, progress=bars)
        facts["rows"].append(seen_row(found, read, bound, config.run.seed))
    return {
        **provenance(config, corpus, _step_of(path)),
        "stride": stride,
        "price": price,
        **facts,
    }


@torch.no_grad()
def evaluate_parallel(
    target: Path,
    step: int | None = None,
    *,
    thoughts: int,
    lengths: Sequence[int] = (),
    say: Callable[[str], None],
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Read several thoughts of each position of the evaluation together; see
    `rntp.evaluation.parallel`.

    thoughts: of a position. lengths: tokens after which the same thoughts are closed and read once
    more. overrides and errors: as of `evaluate_target`, and ConfigError for lengths that thoughts
    cannot have, and where memories are carried from piece to piece.
    """
    config, model, manifest, path = _open(target, step, say, overrides)
    check_lengths(config, lengths)
    if config.reading.piece is not None:
        raise ConfigError(
            "--parallel: memories here are carried from piece to piece (reading.piece), in one "
            "chain; leave --parallel out"
        )
    corpus = open_corpus(config, manifest, model.tokenizer)
    contexts = corpus.heldout_contexts(config.evaluation.heldout_docs)
    engine = open_engine(model, config, thoughts=thoughts, purpose="parallel")
    _, place = evaluation_places(config, model.tokenizer)
    pages: dict[str, list[Page]] = {name: [] for name in [*map(str, lengths), "full"]}
    with Bars() as bars, serving(engine, model, config):
        for first in range(0, len(contexts), engine.docs_per_batch):
            bars("parallel", first, len(contexts))
            batch = contexts[first : first + engine.docs_per_batch]
            rollouts = engine.sample(batch, place, no_check)
            for length, found in pages.items():
                some = rollouts if length == "full" else [cut(r, int(length)) for r in rollouts]
                found += score_pages(model, some, config, no_check)
        bars("parallel", len(contexts), len(contexts))
    if not pages["full"]:
        raise DataError("--parallel: no held-out page has room for a thought")
    return {
        **provenance(config, corpus, _step_of(path)),
        "num_docs": len(contexts),
        "rows": together(pages, config.run.seed),
    }


def _step_of(path: Path | None) -> int:
    """The step of a checkpoint; 0 of a base model."""
    return int(checkpoint.load_state(path)["step"]) if path else 0


def reads_pieces(target: Path, overrides: Sequence[str] = ()) -> bool:
    """Tell whether what a command names reads behind a window that loses some of a page, which is
    read by pieces therefore."""
    load = run_folder.load_config if target.is_dir() else Config.load
    return load(target, overrides).loses_context


def _open(
    target: Path, step: int | None, say: Callable[[str], None], overrides: Sequence[str]
) -> tuple[Config, LanguageModel, Data, Path | None]:
    """Open what a command names, the corpus whose held-out pages it is measured on, and say which
    checkpoint it is."""
    path: Path | None = None
    if target.is_dir():
        for override in overrides:
            if not override.startswith(MEASURED):
                raise ConfigError(
                    f"--set {override}: {target} was trained with what its config says; only "
                    f"{', '.join(MEASURED)} can be measured otherwise"
                )
        config, model, path = open_trained(target, step, say, overrides)
        say(f"evaluating {path}")
        trained_on = checkpoint.load_state(path)["data_digest"]
    else:
        config = Config.load(target, overrides)
        model, trained_on = open_model(config), None
    if not config.evaluation.enabled:
        raise ConfigError(f"{target}: evaluation.docs is 0, so no pages are held out")
    data = open_data(config)
    if trained_on not in (None, data.digest):
        raise DataError(
            f"{config.data.source} is not the corpus that {target} was trained on, so its held-out "
            f"pages are others ({data.digest[:16]} here, {trained_on[:16]} there)"
        )
    for note in sharing_notes(config, model):
        say(note)
    cast_parameters(model.hf, getattr(torch, config.model.dtype))
    return config, model, data, path


def _in_pieces(config: Config, piece: int | None) -> Config:
    """The config with another length of a piece. Raises ConfigError where pieces cannot be read."""
    if piece is not None:
        reading = config.reading.model_copy(update={"piece": piece})
        config = config.model_copy(update={"reading": reading})
    if config.reading.mixing:
        raise ConfigError(
            "--piece: memories that are carried through a page are read without mixing, and this "
            "model was trained with reading.mixing; take a run without it"
        )
    if config.reading.piece is None or config.reading.window is None:
        raise ConfigError(
            "--pages reads piece by piece behind a window: set reading.window in the config, and "
            "reading.piece or --piece"
        )
    if not config.reading.window <= config.reading.piece or config.reading.piece < 2:
        raise ConfigError(
            f"--piece {config.reading.piece}: a piece has 2 tokens at least, and as many as "
            f"reading.window, {config.reading.window}"
        )
    return config


def _parts(data: Manifest | Mixture | TaskSource) -> list[Manifest]:
    if isinstance(data, Mixture):
        return data.manifests
    return [data] if isinstance(data, Manifest) else []
