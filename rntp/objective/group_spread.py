"""How far apart the rewards of a group usually lie: what `objective.drop_groups_below` measures
by."""

from collections.abc import Mapping

import torch
from torch import Tensor

DECAY = 0.9  # of the running mean, a step


class GroupSpread:
    """Running mean of the standard deviation of a group's rewards, over all groups of each step.

    Groups that were dropped are in it: without them the mean would only ever rise.
    """

    def __init__(self) -> None:
        self._mean = torch.zeros((), dtype=torch.float64)
        self._steps = torch.zeros((), dtype=torch.int64)

    @property
    def mean(self) -> float:
        """Reward units; 0 before the first step."""
        return float(self._mean)

    def observe(self, spread_Q: Tensor) -> None:
        """Take in the standard deviations of the groups of a step, reward units."""
        spread = spread_Q.cpu().double().mean()
        first = self._steps == 0
        self._mean.copy_(spread if first else DECAY * self._mean + (1 - DECAY) * spread)
        self._steps += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {"mean": self._mean, "steps": self._steps}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        self._mean.copy_(tensors["mean"])
        self._steps.copy_(tensors["steps"])
