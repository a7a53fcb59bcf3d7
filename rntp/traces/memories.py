"""Memories by fixed rules, written into pages: what a model learns to read before it writes any.

As thought-augmented pretraining does with thoughts (2509.20186), a later run with
`thought.thoughts_per_position: 0` trains on them by plain next-token prediction. For each position
of a page there are the three documents of `rntp.traces.as_read`. What stands before a memory is
lost in `read`, so that only the memory can tell of it.

`best_piece` is chosen with the continuation in view, so that a model which reads such memories
comes to believe them more than any that a policy writes deserve: those are for writing (`kinds`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rntp import __version__
from rntp.config import Config
from rntp.data.corpus import Corpus, marker_ids, open_corpus, open_data
from rntp.data.manifest import Manifest
from rntp.data.token_ids import to_codes
from rntp.errors import ConfigError
from rntp.evaluation.chosen_pieces import CHOSEN, chosen_piece
from rntp.evaluation.pieces import RULES, lost_and_window, written
from rntp.model import LanguageModel
from rntp.model.opening import open_to_compute
from rntp.model.tokenizer import decode, prefix_ids
from rntp.placement.placer import training_placer
from rntp.rng import uniform
from rntp.runtime.progress import Bars
from rntp.traces.as_read import KINDS, Document, check_kinds, documents_at, without_prefix
from rntp.traces.shards import token_id_writer
from rntp.types import Context, Known, Rollout, Thought


def write_memories(
    config: Config,
    out: Path,
    rules: Sequence[str],
    contexts: int,
    pieces_tried: int = 32,
    kinds: Sequence[str] = KINDS,
) -> dict[str, Any]:
    """Write a corpus of memories of the first `contexts` contexts that a config trains on.

    rules: taken in turn, by position; those of `rntp.evaluation.chosen_pieces` try `pieces_tried`
    evenly spaced pieces. kinds: which documents each position gives. Returns the provenance,
    published beside the shards as memories.json. Raises ConfigError and DataError, each with the
    remedy.
    """
    window = config.reading.window
    if window is None:
        raise ConfigError("memories stand for what a window loses; set reading.window")
    if config.reading.piece is not None:
        raise ConfigError(
            "memories by rule are pieces of all that a window loses; set reading.piece to null "
            "here: a model that reads them reads those of a chain"
        )
    unknown = [rule for rule in rules if rule not in (*RULES, *CHOSEN)]
    if unknown or not rules:
        raise ConfigError(
            f"--rules: {', '.join(unknown) or 'none'}; there are {', '.join((*RULES, *CHOSEN))}"
        )
    check_kinds(kinds)
    if out.exists():
        raise ConfigError(f"{out} exists; choose another name or remove it")
    if contexts < 1 or pieces_tried < 1:
        raise ConfigError("--contexts and --pieces must be 1 or more")
    data = open_data(config)
    if not isinstance(data, Manifest):
        raise ConfigError("memories want one prepared corpus: set data.source to its folder")
    model = open_to_compute(config)
    corpus = open_corpus(config, data, model.tokenizer)
    facts = {
        "rntp": __version__,
        "model": config.model.spec,
        "config_digest": config.digest(),
        "data_digest": data.digest,
        "window": window,
        "memory_tokens": config.thought.thought_tokens,
        "rules": list(rules),
        "kinds": list(kinds),
        "pieces_tried": pieces_tried,
        "contexts": contexts,
    }
    with Bars() as bars:
        documents = _documents(model, corpus, config, rules, contexts, pieces_tried, bars)
        documents = (row for row in documents if row[3].kind in kinds)
        counts = _write(out, documents, data, model, config, facts)
    return {**facts, "documents": counts}


def _documents(
    model: LanguageModel,
    corpus: Corpus,
    config: Config,
    rules: Sequence[str],
    contexts: int,
    pieces_tried: int,
    bars: Bars,
) -> Iterator[tuple[Context, int, str, Document]]:
    """Make the documents of the contexts, position by position, each with the rule that wrote the
    memory."""
    place = training_placer(config, None, model.tokenizer)
    window, horizon = config.reading.window, config.reward.horizon
    assert window is not None
    number = 0
    for ordinal in range(contexts):
        bars("contexts", ordinal, contexts)
        context = corpus.train[ordinal]
        nothing = torch.zeros(len(context))
        positions = place(context, Known(nothing, nothing))
        rollout = Rollout(context, positions, ((),) * len(positions), nothing[:0], nothing[:0])
        for position in positions:
            rule = rules[number % len(rules)]
            number += 1
            memory = _memory(model, rollout, position, rule, config, pieces_tried)
            for document in documents_at(model, rollout, position, memory, window, horizon):
                yield context, position, rule, document


def _memory(
    model: LanguageModel,
    rollout: Rollout,
    position: int,
    rule: str,
    config: Config,
    pieces_tried: int,
) -> Thought:
    """Write the memory of a position by a rule."""
    window, tokens = config.reading.window, config.thought.thought_tokens
    assert window is not None
    if rule in CHOSEN:
        return written(chosen_piece(model, rollout, position, rule, config, pieces_tried))
    lost, kept = lost_and_window(rollout, position, window)
    draw = uniform(config.run.seed, "piece", rollout.context.ordinal, position).item()
    return written(RULES[rule](lost, kept, tokens, draw))


def _write(
    out: Path,
    documents: Iterator[tuple[Context, int, str, Document]],
    manifest: Manifest,
    model: LanguageModel,
    config: Config,
    facts: Mapping[str, Any],
) -> dict[str, int]:
    """Write the shards, and how many documents of each kind there are."""
    number = {name: n for n, name in enumerate(manifest.document_ids)}
    prefix = prefix_ids(model.tokenizer)
    markers = marker_ids(config, model.tokenizer)
    counts = dict.fromkeys(KINDS, 0)
    with token_id_writer(out, manifest, facts) as writer:
        for context, position, rule, document in documents:
            counts[document.kind] += 1
            ids, given = without_prefix(document, prefix)
            origin = manifest.read(number[context.document_id]).metadata
            writer.add(
                f"{document.kind}-{context.ordinal}-{position}",
                decode(model.tokenizer, torch.tensor(ids)),
                {
                    **{key: origin[key] for key in ("url", "title", "source")},
                    "token_ids": to_codes(ids, markers),
                    "given_tokens": given,
                    "memory": {"rule": rule, "document_id": context.document_id},
                },
                len(ids),
            )
        (writer.partial_folder / "memories.json").write_text(
            json.dumps({**facts, "documents": counts}, indent=2) + "\n", encoding="utf-8"
        )
        writer.finish(counts)
    return counts
