"""A run's checkpoint as a model: for evaluation and export."""

from collections.abc import Callable
from pathlib import Path

import torch

from rntp import checkpoint, run_folder
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.preflight import open_model


def open_trained(
    run_dir: Path, step: int | None, say: Callable[[str], None]
) -> tuple[Config, LanguageModel, Path]:
    """The run's config, its model with the checkpoint's master weights, and the checkpoint.

    step: of the checkpoint; None takes the newest whole one. Raises ConfigError if the folder
    holds no run, and CheckpointError if it has no such whole checkpoint.
    """
    config = run_folder.load_config(run_dir)
    path = checkpoint.choose(run_dir / "checkpoints", step, say)
    model = open_model(config)
    weights = checkpoint.load(path, "weights")
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            parameter.copy_(weights[name])
    return config, model, path
