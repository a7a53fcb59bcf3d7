"""A run's checkpoint as a model: for evaluation, export and soups."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rntp.config import Config
from rntp.gate import Gate, GateAlong
from rntp.model import LanguageModel
from rntp.model.opening import open_model
from rntp.run import checkpoint
from rntp.run import folder as run_folder


def open_trained(
    run_dir: Path, step: int | None, say: Callable[[str], None], overrides: Sequence[str] = ()
) -> tuple[Config, LanguageModel, Path]:
    """The run's config, its model with the checkpoint's master weights, and the checkpoint.

    step: of the checkpoint; None takes the newest whole one. overrides: `section.field=value`, on
    top of the run's config. Raises ConfigError if the folder holds no run, and CheckpointError if
    it has no such whole checkpoint.
    """
    config = run_folder.load_config(run_dir, overrides)
    path = checkpoint.choose(run_dir / "checkpoints", step, say)
    model = open_model(config)
    take_weights(model, checkpoint.load(path, "weights"))
    return config, model, path


@torch.no_grad()
def take_weights(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name into the model, rounded to its type."""
    for name, parameter in model.hf.named_parameters():
        parameter.copy_(weights[name])


def learnt_gate(path: Path, config: Config) -> Gate | None:
    """Give the gate that a checkpoint's run has learnt along; None where it has seen too little."""
    if not checkpoint.has(path, "gate"):
        return None
    along = GateAlong()
    along.restore(checkpoint.load(path, "gate"))
    return along.gate(config.reward.horizon)
