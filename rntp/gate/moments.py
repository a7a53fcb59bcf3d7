"""Sums from which a gain model is fitted: what a run keeps of all gains that it has measured."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Weighted sums over positions, float64; weights are 1, or less of what is long ago.

    count: of weights. x_F, xx_FF: of features and their products. y, yy: of gains, nats a token,
    and their squares. xy_F: of features times gain. least_F, most_F: of each feature ever.
    """

    count: Tensor
    x_F: Tensor
    xx_FF: Tensor
    y: Tensor
    yy: Tensor
    xy_F: Tensor
    least_F: Tensor
    most_F: Tensor

    @classmethod
    def of(cls, features_NF: Tensor, gain_N: Tensor) -> "Moments":
        """Sum up some positions; features [N, F] and gains [N], N at least 1."""
        x, y = features_NF.double(), gain_N.double()
        return cls(
            torch.tensor(float(len(y)), dtype=torch.float64),
            x.sum(dim=0),
            x.T @ x,
            y.sum(),
            y.square().sum(),
            x.T @ y,
            x.amin(dim=0),
            x.amax(dim=0),
        )

    def then(self, later: "Moments", share: float) -> "Moments":
        """Count these `share` times, and what came later once."""
        return Moments(
            self.count * share + later.count,
            self.x_F * share + later.x_F,
            self.xx_FF * share + later.xx_FF,
            self.y * share + later.y,
            self.yy * share + later.yy,
            self.xy_F * share + later.xy_F,
            torch.minimum(self.least_F, later.least_F),
            torch.maximum(self.most_F, later.most_F),
        )
