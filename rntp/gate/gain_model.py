"""Bayesian linear regression of gains on features: an estimate, and how sure it is."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ROUNDS = 100
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
        """Fit by evidence maximisation (MacKay 1992): how strongly weights are held to 0, and the
        noise, are those under which the gains were most likely. The mean is not held to 0: where
        nothing can be foreseen it is the estimate. Raises ValueError for fewer than two gains.
        """
        if len(gain_N) < 2:
            raise ValueError("a gain model wants two gains at least")
        centre, scale = features_NF.mean(dim=0), features_NF.std(dim=0, correction=0)
        constant = scale <= 1e-12 * features_NF.abs().amax(dim=0).clamp_min(1e-300)
        scale = torch.where(constant, torch.inf, scale)  # it says nothing
        x, mean = (features_NF - centre) / scale, gain_N.mean()
        gain_N = gain_N - mean
        values, vectors = torch.linalg.eigh(x.T @ x)
        values, along = values.clamp_min(0), vectors.T @ (x.T @ gain_N)
        count = float(len(gain_N))
        variance = float(gain_N.var(correction=0).clamp_min(1e-12))
        held, sure = 1.0, 1.0 / variance  # precisions of a weight, and of a gain
        for _ in range(_ROUNDS):
            weights = sure * along / (held + sure * values)
            used = float((sure * values / (held + sure * values)).sum())
            left = (gain_N - x @ (vectors @ weights)).square().sum()
            new_held = used / float(weights.square().sum().clamp_min(1e-12))
            new_sure = max(count - used - 1.0, 1.0) / float(left.clamp_min(1e-12))
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
