"""Bayesian linear regression of gains on features: an estimate, and how sure it is."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rntp.gate.moments import Moments

_ROUNDS = 100
_TOO_FEW = "a gain model wants two gains at least"
_NUMBERS = ("mean", "error", "noise")
_CLOSE = 1e-6  # relative change of both precisions at which the evidence is at its maximum


@dataclass(frozen=True)
class GainModel:
    """gain = mean + w · (features − centre) / scale + noise, all float64.

    mean: of the gains, nats a token; error: its standard deviation. weights: mean of w, [F];
    covariance: of w, [F, F]. noise: standard deviation of a gain around its estimate, nats a token.
    centre, scale: [F], of the features it was fitted to.
    """

    mean: float
    error: float
    weights: Tensor
    covariance: Tensor
    noise: float
    centre: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, features_NF: Tensor, gain_N: Tensor) -> "GainModel":
        """Fit to features [N, F] and gains [N]; see `of_moments`."""
        if not len(gain_N):
            raise ValueError(_TOO_FEW)
        return cls.of_moments(Moments.of(features_NF, gain_N))

    @classmethod
    def of_moments(cls, moments: Moments) -> "GainModel":
        """Fit by evidence maximisation (MacKay 1992): how strongly weights are held to 0, and the
        noise, are those under which the gains were most likely. The mean is not held to 0: where
        nothing can be foreseen it is the estimate. Raises ValueError for fewer than two gains.
        """
        count = float(moments.count)
        if count < 2:
            raise ValueError(_TOO_FEW)
        mean, centre = moments.y / count, moments.x_F / count
        spread = (moments.xx_FF.diagonal() / count - centre.square()).clamp_min(0).sqrt()
        # Where a feature is always the same, differences of sums are nothing but rounding.
        same = moments.least_F == moments.most_F
        scale = torch.where(same | (spread <= 1e-9 * centre.abs()), torch.inf, spread)
        inner = (moments.xx_FF - count * torch.outer(centre, centre)) / torch.outer(scale, scale)
        values, vectors = torch.linalg.eigh(inner)
        values = values.clamp_min(0)
        along = vectors.T @ ((moments.xy_F - count * centre * mean) / scale)
        total = float((moments.yy - count * mean.square()).clamp_min(1e-12 * count))
        variance = total / count
        held, sure = 1.0, 1.0 / variance  # precisions of a weight, and of a gain
        for _ in range(_ROUNDS):
            weights = sure * along / (held + sure * values)
            used = float((sure * values / (held + sure * values)).sum())
            left = total - 2 * (weights @ along) + (weights.square() @ values)
            new_held = used / float(weights.square().sum().clamp_min(1e-12))
            new_sure = max(count - used - 1.0, 1.0) / max(float(left), 1e-12 * count)
            close = abs(new_held - held) < _CLOSE * held and abs(new_sure - sure) < _CLOSE * sure
            held, sure = new_held, new_sure
            if close:
                break
        precision = held + sure * values
        return cls(
            float(mean),
            (sure * count) ** -0.5,
            vectors @ (sure * along / precision),
            (vectors / precision) @ vectors.T,
            sure**-0.5,
            centre,
            scale,
        )

    def predict(self, features_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates and their standard deviations, nats a token, [N] each; the noise of a single
        gain is not in them."""
        x = (features_NF - self.centre) / self.scale
        spread = ((x @ self.covariance) * x).sum(dim=1).clamp_min(0).sqrt()
        return self.mean + x @ self.weights, (spread.square() + self.error**2).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file keeps."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {
            **{name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()},
            "weights": self.weights,
            "covariance": self.covariance,
            "centre": self.centre,
            "scale": self.scale,
        }

    @classmethod
    def of_tensors(cls, found: dict[str, Tensor]) -> "GainModel":
        """Take back what `tensors` gave. Raises KeyError where something is missing."""
        values: dict[str, Any] = {name: float(found[name]) for name in _NUMBERS}
        values |= {name: found[name] for name in ("weights", "covariance", "centre", "scale")}
        return cls(**values)
