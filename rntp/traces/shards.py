"""Thoughts as a corpus: prefix, <think> thought </think>, continuation, a document each.

A later run with `thought.thoughts_per_position: 0` trains on them by plain next-token prediction
(thought-augmented pretraining, 2509.20186). Encoding text again would not do: it would cut the
tokens anew, and it reads no marker out of a page, so that a page which spells "<think>" cannot
forge one. So these documents carry their token ids, markers among them, and the corpus says so.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.data.corpus import Corpus, marker_ids
from rntp.data.manifest import Manifest
from rntp.data.manifest_writer import ShardWriter
from rntp.data.token_ids import to_codes
from rntp.errors import ConfigError, DataError
from rntp.model.tokenizer import decode, prefix_ids, start_id, token_strings
from rntp.types import without_calls

SHARD_BYTES = 64 << 20


def token_id_writer(folder: Path, like: Manifest, facts: Mapping[str, Any]) -> ShardWriter:
    """Open a corpus of token ids of the tokenizer that another corpus has. facts: its provenance,
    which its digest is of."""
    provenance = json.dumps(facts, sort_keys=True)
    return ShardWriter(
        folder,
        shard_bytes=SHARD_BYTES,
        tokenizer_digest=like.tokenizer_digest,
        tokenizer_spec=like.tokenizer_spec,
        prep_digest=hashlib.sha256(provenance.encode()).hexdigest(),
        content="token_ids",
    )


def write_shards(
    folder: Path,
    rows: Iterable[dict[str, Any]],
    corpus: Corpus,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    facts: Mapping[str, Any],
    funnel: Mapping[str, int],
) -> Manifest:
    """Write a corpus of one document a row. facts: provenance, published as traces.json.

    facts["plain_pages"] contexts of the run without a thought come before them.

    A document has the whole prefix that the run's context had, so a later run wants
    `data.context_tokens` of this run's, thought and markers beside; of a run with a reading window
    it has what was read, and nothing of what was lost. Raises DataError where a
    context is not what the run read.
    """
    manifest = corpus.manifest
    if not isinstance(manifest, Manifest):
        raise ConfigError(
            "--shards wants a run on one prepared corpus; write a .jsonl file instead"
        )
    number = {name: n for n, name in enumerate(manifest.document_ids)}
    skip, markers = len(prefix_ids(tokenizer)), marker_ids(config, tokenizer)
    with token_id_writer(folder, manifest, facts) as writer:
        for ordinal in range(facts["plain_pages"]):
            context = corpus.train[ordinal]
            page = context.token_ids[skip:]
            origin = manifest.read(number[context.document_id]).metadata
            writer.add(
                f"page-{ordinal}",
                decode(tokenizer, page),
                {
                    **{key: origin[key] for key in ("url", "title", "source")},
                    "token_ids": to_codes(page.tolist(), markers),
                },
                len(page),
            )
        for row in rows:
            context = corpus.train[row.get("replay_of", row["ordinal"])]
            position = row["position"]
            held_out = context.token_ids[position : position + len(row["continuation_tokens"])]
            if context.document_id != row["document_id"] or (
                token_strings(tokenizer, held_out) != row["continuation_tokens"]
            ):
                raise DataError(
                    f"context {row['ordinal']} is not what the run read at step {row['step']}; "
                    "use the corpus and the version of rntp that it was trained with"
                )
            if "lost_tokens" in row:
                pieces = _as_read(context.token_ids, row, held_out, start_id(tokenizer), skip)
            else:
                pieces = _pieces(context.token_ids, row, held_out, skip)
            ids = [i for piece in pieces for i in piece.tolist()]
            origin = manifest.read(number[context.document_id]).metadata
            writer.add(
                f"{row['step']}-{row['ordinal']}-{position}-{row['thought_index']}",
                "".join(decode(tokenizer, piece) for piece in pieces),
                {
                    **{key: origin[key] for key in ("url", "title", "source")},
                    "token_ids": to_codes(ids, markers),
                    "trace": {key: row[key] for key in ("step", "document_id", "position", "gain")},
                },
                len(ids),
            )
        (writer.partial_folder / "traces.json").write_text(
            json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return writer.finish(funnel)


def _as_read(
    token_ids: Tensor, row: Mapping[str, Any], held_out: Tensor, start: int, skip: int
) -> list[Tensor]:
    """A memory as its continuation was read: start token, memory, window, continuation. skip: the
    start token is what the loader puts before a page."""
    if row.get("seen") and not row.get("left"):
        raise ConfigError(
            "--shards: a run with both placement.interleaved and reading.window read windows with "
            "earlier thoughts in them, which no page has; write a .jsonl file instead"
        )
    pieces = [] if skip else [held_out.new_tensor([start])]
    pieces.append(_read_of(row))
    return [*pieces, token_ids[row["lost_tokens"] : row["position"]], held_out]


def _read_of(row: Mapping[str, Any]) -> Tensor:
    """A thought with its markers, without the calls that a window does not read: int64 [n]."""
    ids = torch.tensor(row["thought_ids"], dtype=torch.int64)
    asked = [call["asked"] for call in row.get("calls", ()) if call.get("asked")]
    given = torch.zeros(len(ids), dtype=torch.bool)
    of_thought = torch.tensor(row.get("given", []), dtype=torch.bool)
    given[1 : 1 + len(of_thought)] = of_thought
    return without_calls(ids, given, asked)


def _pieces(token_ids: Tensor, row: Mapping[str, Any], held_out: Tensor, skip: int) -> list[Tensor]:
    """Cut a page at its thoughts, the earlier ones that this one saw and itself, with the thoughts
    and the continuation in between. skip: tokens before the page."""
    pieces, done = list[Tensor](), skip
    for each in (*row.get("seen", ()), row):
        pieces.append(token_ids[done : each["position"]])
        pieces.append(held_out.new_tensor(each["thought_ids"]))
        done = each["position"]
    return [*pieces, held_out]
