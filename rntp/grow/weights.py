"""The mixture that a run goes on with: a share for every corpus, learnt from what it teaches.

A corpus' share is its share of tokens, times a tilt: what a token of it teaches the current model,
over what one does on average. The tilt is bounded both ways, so that no corpus starves or is read
to death. Shares change when a corpus has grown, and then the run begins a new segment, so that a
resume is exact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rntp.config import Config
from rntp.config.places import is_task
from rntp.data.live import refuse_live
from rntp.data.manifest import Manifest
from rntp.data.order import Order
from rntp.data.stream import is_heldout
from rntp.errors import ConfigError
from rntp.grow.choice import worth_of
from rntp.grow.frontier import WORTH
from rntp.rng import hashed

_FIRST = 1 << 40  # numbers of pages that are only measured: no page of a frontier gets there
_PURPOSE = "grow, weights"

Probe = Callable[[Mapping[int, str]], Mapping[int, Mapping[str, float] | None]]


def corpora(config: Config) -> list[Path]:
    """The folders that a run's `data.source` names. Raises ConfigError for what cannot grow."""
    source = config.data.source
    names = list(source) if isinstance(source, dict) else [str(source)]
    for name in names:
        refuse_live(name, "rntp data grow")
        if is_task(name):
            raise ConfigError(f"data.source {name} is of tasks, and rntp data grow adds pages")
    return [Path(name) for name in names]


def tilts(teaches: Sequence[float], tokens: Sequence[int], most: float) -> list[float]:
    """By how much corpora are read more or less than their tokens say.

    teaches: of each, nats a token, 0 or more. most: the largest tilt; 1 / most is the least.
    Without anything to learn anywhere, all are 1.
    """
    mean = math.fsum(t * n for t, n in zip(teaches, tokens, strict=True)) / sum(tokens)
    if mean <= 0:
        return [1.0] * len(tokens)
    return [min(max(t / mean, 1 / most), most) for t in teaches]


def shares(teaches: Sequence[float], tokens: Sequence[int], most: float) -> list[float]:
    """Share of each corpus in the mixture; they add up to 1. Parameters as of `tilts`."""
    weights = [a * n for a, n in zip(tilts(teaches, tokens, most), tokens, strict=True)]
    return [weight / math.fsum(weights) for weight in weights]


def teaches(worths: Sequence[Mapping[str, float]]) -> float:
    """What a corpus teaches, nats a token, from the worths of some of its pages: as a region of
    `rntp.grow.choice` does, with the means themselves for draws of them."""
    if not worths:
        return 0.0
    means = {name: math.fsum(w[name] for w in worths) / len(worths) for name in WORTH}
    return max(worth_of(**means), 0.0)


def learn(
    folders: Sequence[Path], probe: Probe, config: Config, count: int, seed: int, most: float
) -> list[dict[str, Any]]:
    """One row a corpus: what was measured on `count` of its training pages, and its share."""
    rows: list[dict[str, Any]] = []
    for index, folder in enumerate(folders):
        manifest = Manifest.load(folder)
        if manifest.content != "text":
            raise ConfigError(f"{folder} carries token ids of made pages, which cannot be grown")
        first = _FIRST + index * (1 << 20)
        texts = dict(enumerate(_some(manifest, config, count, seed, index), first))
        worths = [found for found in probe(texts).values() if found is not None]
        means = {
            name: math.fsum(w[name] for w in worths) / len(worths) if worths else None
            for name in WORTH
        }
        facts = {"corpus": str(folder), "digest": manifest.digest, "tokens": manifest.total_tokens}
        rows.append({**facts, "pages": len(worths), **means, "teaches": teaches(worths)})
    found = shares([row["teaches"] for row in rows], [row["tokens"] for row in rows], most)
    # As they will be written into a config: what is logged is what trains.
    return [{**row, "share": round(share, 4)} for row, share in zip(rows, found, strict=True)]


def _some(manifest: Manifest, config: Config, count: int, seed: int, index: int) -> list[str]:
    """Texts of the first `count` documents that are trained on, in an order of their own."""
    order = Order(manifest.num_docs, int(hashed(seed, _PURPOSE, index)))
    found: list[str] = []
    for ordinal in range(manifest.num_docs):
        document = manifest.read(order[ordinal][0])
        if not is_heldout(document.id, config.data.heldout_fraction):
            found.append(document.text)
        if len(found) == count:
            break
    return found
