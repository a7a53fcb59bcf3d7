"""Evaluating what a command names: a run folder's checkpoint, or a config's base model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.errors import ConfigError, DataError
from rntp.evaluation.during import read_result
from rntp.evaluation.measure import evaluate
from rntp.evaluation.third import check_third
from rntp.model import cast_parameters
from rntp.model.opening import open_model
from rntp.run import checkpoint
from rntp.run.trained import open_trained
from rntp.runtime.progress import Bars
from rntp.training.preflight import sharing_notes


def evaluate_target(
    target: Path, step: int | None = None, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Evaluate a run folder's checkpoint (the newest whole one, or that of `step`), or a config's
    base model. Raises ConfigError, DataError or CheckpointError.
    """
    reference = None
    if target.is_dir():
        config, model, path = open_trained(target, step, say)
        say(f"evaluating {path}")
        trained_on = checkpoint.load_state(path)["data_digest"]
        reference = read_result(config, 0)
    else:
        config = Config.load(target)
        model, trained_on = open_model(config), None
    if not config.evaluation.enabled:
        raise ConfigError(f"{target}: evaluation.enabled is false, so no pages are held out")
    manifest = open_data(config)
    if trained_on not in (None, manifest.digest):
        raise DataError(
            f"{config.data.source} is not the corpus that {target} was trained on, so its held-out "
            f"pages are others ({manifest.digest[:16]} here, {trained_on[:16]} there)"
        )
    for note in sharing_notes(config, model):
        say(note)
    check_third(config, model.tokenizer)
    corpus = open_corpus(config, manifest, model.tokenizer)
    cast_parameters(model.hf, getattr(torch, config.model.dtype))
    contexts = corpus.heldout_contexts(config.evaluation.docs)
    with Bars() as bars:
        return evaluate(model, contexts, config, reference=reference, progress=bars)
