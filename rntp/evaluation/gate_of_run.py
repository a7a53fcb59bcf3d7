"""Fit the gate of a run's model on some of its pages and measure it on held-out ones."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rntp.config import Config
from rntp.data.corpus import Corpus, open_corpus, open_data
from rntp.errors import ConfigError
from rntp.evaluation.gate_fit import Measured, fit_gate, judge_gate, measure, page_error
from rntp.evaluation.thoughts_cut import check_lengths
from rntp.model import LanguageModel
from rntp.run.settings import FILE as SETTINGS
from rntp.run.trained import open_trained
from rntp.runtime.progress import Bars
from rntp.types import Context

_LEAST = 20  # gains that anything can be said from


def learn_gate(
    run_dir: Path,
    model_dir: Path,
    *,
    contexts: int,
    positions: int,
    thoughts: int,
    price: float,
    step: int | None,
    say: Callable[[str], None],
    lengths: Sequence[int] = (),
    unseen: bool = False,
) -> dict[str, Any]:
    """Write a gate into an exported folder, and return what `judge_gate` says of it.

    contexts: pages of the training stream to fit it to, and as many held-out ones at most to
    measure it on. unseen: fit it to other held-out ones instead, half of them where there are not
    twice as many. lengths: tokens of shorter thoughts that the gate may ask for. Raises
    ConfigError, DataError and CheckpointError.
    """
    if not (model_dir / SETTINGS).is_file():
        raise ConfigError(
            f"{model_dir} is no exported folder (it has no {SETTINGS}); rntp ckpt export {run_dir} "
            f"{model_dir} makes one"
        )
    if min(contexts, positions, thoughts) < 1:
        raise ConfigError("--contexts, --positions and --thoughts must be 1 or more")
    config, model, path = open_trained(run_dir, step, say)
    if not config.evaluation.enabled:
        raise ConfigError("the run has evaluation.docs: 0, so no pages are held out")
    check_lengths(config, lengths)
    corpus = open_corpus(config, open_data(config), model.tokenizer)
    with Bars() as bars:
        fitted, held = (
            _measured(model, pages, config, positions, thoughts, lengths, name, bars)
            for name, pages in _pages(corpus, contexts, unseen=unseen)
        )
    corpus.close()
    gate = fit_gate(fitted, config.reward.horizon)
    gate.save(model_dir)
    return {
        "fitted_to": len(fitted.gain_N),
        "fitted_gain": float(fitted.gain_N.mean()),
        "fitted_error": page_error(fitted),
        "unseen": unseen,
        "checkpoint": path.name,
        "thought_tokens": gate.thought_tokens,
        "horizon": gate.horizon,
        **judge_gate(gate, held, price),
    }


def _pages(corpus: Corpus, contexts: int, *, unseen: bool) -> list[tuple[str, list[Context]]]:
    """The pages to fit to, and to measure on: the first held-out ones, as in evaluations."""
    held, name = corpus.heldout_contexts(2 * contexts if unseen else contexts), "gate, held out"
    if not unseen:
        return [("gate, fit", corpus.reused_contexts(contexts)), (name, held)]
    first = (len(held) + 1) // 2
    return [("gate, fit", held[first:]), (name, held[:first])]


def _measured(
    model: LanguageModel,
    pages: Sequence[Context],
    config: Config,
    positions: int,
    thoughts: int,
    lengths: Sequence[int],
    name: str,
    bars: Bars,
) -> Measured:
    parts = []
    size = config.rollout.docs_per_batch
    for first in range(0, len(pages), size):
        bars(name, first, len(pages))
        batch = pages[first : first + size]
        parts.append(
            measure(
                model,
                batch,
                config,
                positions=positions,
                thoughts=thoughts,
                purpose=name,
                lengths=lengths,
            )
        )
    bars(name, len(pages), len(pages))
    found = _joined(parts)
    if len(found.gain_N) < _LEAST:
        raise ConfigError(
            f"{len(found.gain_N)} positions are too few to say anything; raise --contexts or "
            "--positions, or hold out more (data.heldout_fraction)"
        )
    return found


def _joined(parts: Sequence[Measured]) -> Measured:
    """Put parts together; pages are numbered on."""
    firsts, number = [], 0
    for part in parts:
        firsts.append(part.document_N + number)
        number += int(part.document_N.max()) + 1
    sizes = [len(part.gain_N) for part in parts]

    def mean(of: Sequence[float]) -> float:
        return sum(value * n for value, n in zip(of, sizes, strict=True)) / max(sum(sizes), 1)

    return Measured(
        torch.cat([part.features_NF for part in parts]),
        torch.cat([part.gain_N for part in parts]),
        torch.cat(firsts),
        mean([part.tokens for part in parts]),
        {
            most: (
                torch.cat([part.shorter[most][0] for part in parts]),
                mean([part.shorter[most][1] for part in parts]),
            )
            for most in parts[0].shorter
        },
        torch.cat([part.next_N for part in parts if part.next_N is not None]),
    )
