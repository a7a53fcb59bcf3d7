"""What whole pages cost and say when they are read with a memory: `rntp eval --pages`."""

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import numpy as np
import torch

from rntp.config import Config
from rntp.evaluation.page_reading import ARMS, PageReading, Spent
from rntp.evaluation.resampling import interval
from rntp.model import LanguageModel
from rntp.model.token_bytes import ByteCounter
from rntp.model.tokenizer import decode
from rntp.training.estimate import Shape

DISTANCES = 8  # groups of pieces by how far into the page they are


def page_table(
    model: LanguageModel,
    found: Sequence[PageReading],
    spent: Mapping[str, Spent],
    config: Config,
) -> dict[str, Any]:
    """Tabulate what `rntp.evaluation.page_reading.read_pages` found.

    All of it is of the tokens behind the first piece, which all arms read alike; of "everything",
    of those that the model reaches. saved: bits a byte less than the window alone; intervals are of
    95 %, over pages. kv_bytes: keys and values that an arm holds at most, computed from the longest
    sequence that it reads. seconds_per_1000: wall clock by tokens that are predicted.
    """
    rows = _Rows(model, found, config)
    shape = Shape.of(model.hf, shares=model.shares)
    element = next(model.hf.parameters()).element_size()
    memories = [m for r in found for m, w in zip(r.memories[1:], r.written, strict=True) if w]
    links = sum(len(r.written) for r in found)
    return {
        "piece": config.reading.piece,
        "window": config.reading.window,
        "memory_tokens": config.memory_tokens,
        "num_docs": len(found),
        "num_tokens": int(rows.tokens_R.sum()),
        "longest_page": max(len(r.page) for r in found),
        "reaches": model.max_span,
        "arms": {
            arm: {
                **rows.of(arm),
                "kv_bytes": 2 * shape.layers * shape.kv_width * element * spent[arm].held,
                "computed_per_token": spent[arm].computed / rows.tokens(arm),
                "seconds_per_1000": 1000 * spent[arm].seconds / rows.tokens(arm),
            }
            for arm in ARMS
        },
        "saved": {arm: rows.saved(arm) for arm in ARMS[1:]},
        "recovered": rows.recovered(),
        "curve": rows.curve(),
        "written_frac": len(memories) / links if links else 0.0,
        "memory_tokens_mean": float(np.mean([len(m.content) for m in memories]) if memories else 0),
        "examples": _examples(model, found),
    }


class _Rows:
    """A row for each piece behind the first of a page: nats by arm, bytes, place, page; [R] each.

    nats: NaN where the model does not reach all of the piece.
    """

    def __init__(self, model: LanguageModel, found: Sequence[PageReading], config: Config) -> None:
        piece, count_bytes = config.reading.piece, ByteCounter(model.tokenizer)
        assert piece is not None
        self.seed = config.run.seed
        nats: dict[str, list[float]] = {arm: [] for arm in ARMS}
        tokens, sizes, places, documents = [], [], [], []
        for number, reading in enumerate(found):
            ids = reading.page.token_ids
            for first in range(piece, len(ids), piece):
                stop = min(first + piece, len(ids))
                for arm in ARMS:
                    part = reading.nll[arm][first - piece : stop - piece]
                    whole = len(part) == stop - first
                    nats[arm].append(float(part.double().sum()) if whole else float("nan"))
                tokens.append(stop - first)
                sizes.append(count_bytes.span(ids, first, stop))
                places.append(first)
                documents.append(number)
        self.nats = {arm: np.array(values) for arm, values in nats.items()}
        self.tokens_R, self.bytes_R = np.array(tokens), np.array(sizes, dtype=float)
        self.places_R, self.documents_R = np.array(places), np.array(documents)

    def reached(self, *arms: str) -> np.ndarray:
        """bool [R]: pieces that all of these arms have read."""
        known: np.ndarray = np.isfinite(sum(self.nats[arm] for arm in arms))
        return known

    def tokens(self, arm: str) -> int:
        """Tokens that an arm has predicted."""
        return max(int(self.tokens_R[self.reached(arm)].sum()), 1)

    def of(self, arm: str) -> dict[str, float]:
        """Loss of an arm, where it reaches."""
        known = self.reached(arm)
        if not known.any():
            return {"num_tokens": 0, "nll": float("nan"), "bits_per_byte": float("nan")}
        nats = self.nats[arm][known].sum()
        return {
            "num_tokens": int(self.tokens_R[known].sum()),
            "nll": float(nats / self.tokens_R[known].sum()),
            "bits_per_byte": float(nats / log(2) / self.bytes_R[known].sum()),
        }

    def saved(self, arm: str) -> dict[str, Any]:
        """Bits a byte that an arm needs less than the window alone, on what both read."""
        known = self.reached(arm, "window")
        if not known.any():
            return {"bits_per_byte": None, "ci95": None}
        bits = (self.nats["window"] - self.nats[arm])[known] / log(2)
        _, documents = np.unique(self.documents_R[known], return_inverse=True)
        sizes = self.bytes_R[known]
        return {
            "bits_per_byte": float(bits.sum() / sizes.sum()),
            "ci95": interval(bits, documents, self.seed, sizes=sizes),
        }

    def recovered(self) -> float | None:
        """Share of what everything saves that the memory saves, where everything reaches; None
        where it saves nothing."""
        known = self.reached(*ARMS)
        window = self.nats["window"][known]
        whole = (window - self.nats["everything"][known]).sum()
        return float((window - self.nats["memory"][known]).sum() / whole) if whole > 0 else None

    def curve(self) -> list[dict[str, Any]]:
        """Bits a byte by distance from the page's start, in groups of as many places."""
        rows, places = [], np.unique(self.places_R)
        for some in np.array_split(places, min(DISTANCES, len(places))):
            members = np.isin(self.places_R, some)
            row: dict[str, Any] = {
                "from": int(self.places_R[members].min()),
                "to": int((self.places_R + self.tokens_R)[members].max()),
                "num_tokens": int(self.tokens_R[members].sum()),
            }
            for arm in ARMS:
                bits = float(self.nats[arm][members].sum() / log(2) / self.bytes_R[members].sum())
                row[arm] = bits if np.isfinite(bits) else None
            rows.append(row)
        return rows


def _examples(model: LanguageModel, found: Sequence[PageReading]) -> list[dict[str, Any]]:
    """The memories of the first pages, as they changed."""

    def text(ids: torch.Tensor) -> str:
        return decode(model.tokenizer, ids)

    return [
        {
            "document_id": reading.page.document_id,
            "memories": [text(m.content) for m in reading.memories[1:]],
            "written": reading.written,
        }
        for reading in found[:3]
    ]
