"""Bayesian linear regression of gains on features: an estimate, and how sure it is."""

from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDS = 100
_CLOSE = 1e-6  # relative change of both precisions at which the evidence is at its maximum


@dataclass(frozen=True)
class GainModel:
    """gain = w · (features − centre) / scale + noise, all float64.

    weights: mean of w, [F]; covariance: of w, [F, F]. noise: standard deviation of a gain around
    its estimate, nats a token. centre, scale: [F], of the features it was fitted to.
    """

    weights: Tensor
    covariance: Tensor
    noise: float
    centre: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, features_NF: Tensor, gain_N: Tensor) -> "GainModel":
        """Fit by evidence maximisation (MacKay 1992): how strongly weights are held to 0, and the
        noise, are those under which the gains were most likely. Raises ValueError for fewer than
        two gains.
        """
        if len(gain_N) < 2:
            raise ValueError("a gain model wants two gains at least")
        centre, scale = features_NF.mean(dim=0), features_NF.std(dim=0, correction=0)
        constant = scale <= 1e-12 * features_NF.abs().amax(dim=0).clamp_min(1e-300)
        centre = torch.where(constant, 0.0, centre)  # a constant stays: the mean gain hangs on it
        scale = torch.where(constant, 1.0, scale)
        x = (features_NF - centre) / scale
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
            new_sure = max(count - used, 1.0) / float(left.clamp_min(1e-12))
            close = abs(new_held - held) < _CLOSE * held and abs(new_sure - sure) < _CLOSE * sure
            held, sure = new_held, new_sure
            if close:
                break
        precision = held + sure * values
        return cls(
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
        return x @ self.weights, spread

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file keeps."""
        return {
            "weights": self.weights,
            "covariance": self.covariance,
            "noise": torch.tensor(self.noise, dtype=torch.float64),
            "centre": self.centre,
            "scale": self.scale,
        }

    @classmethod
    def of_tensors(cls, found: dict[str, Tensor]) -> "GainModel":
        """Take back what `tensors` gave. Raises KeyError where something is missing."""
        return cls(
            found["weights"],
            found["covariance"],
            float(found["noise"]),
            found["centre"],
            found["scale"],
        )
