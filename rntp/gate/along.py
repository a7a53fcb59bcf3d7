"""A gate that is learnt along with a run: every group says what thinking gained there."""

from collections.abc import Mapping, Sequence
from math import pi

import torch
from torch import Tensor

from rntp.gate.features import features
from rntp.gate.gain_model import GainModel
from rntp.gate.gate import Gate
from rntp.gate.moments import Moments
from rntp.gate.ranking import auc
from rntp.rng import uniform
from rntp.types import Context, NextTokenStats, Page

LEAST = 50  # gains before anything is said
SHARE = 0.98  # of what is known that counts on after another step: the policy changes


class GateAlong:
    """The gains of a run so far, as sums, and the gate that they give.

    It is judged by every step before it learns from it, so that what it says of itself is of
    positions that it has not seen.
    """

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._lengths = torch.zeros(2, dtype=torch.float64)  # tokens of thoughts, and thoughts
        self._model: GainModel | None = None

    @property
    def model(self) -> GainModel | None:
        """The estimate of a gain, nats a token; None as long as too few have been measured."""
        if self._model is None and self._moments is not None and self._moments.count >= LEAST:
            self._model = GainModel.of_moments(self._moments)
        return self._model

    def gate(self, horizon: int) -> Gate | None:
        """The gate as a file keeps it. horizon: tokens that gains were measured on."""
        if self.model is None:
            return None
        tokens, thoughts = self._lengths.tolist()
        return Gate(self.model, horizon, max(tokens / max(thoughts, 1.0), 1.0))

    def of(self, context: Context, next_token: NextTokenStats) -> Tensor:
        """Draw what thinking may gain at each token, nats a token, float32 [L]: the expected gain
        and its error times normal noise, a function of page and token (Thompson sampling). Zeros as
        long as nothing is known."""
        length = len(context)
        if self.model is None:
            return torch.zeros(length)
        # Nothing stands before the first token, which is never a position.
        before = next_token.hidden_LD.roll(1, dims=0)
        mean, error = self.model.predict(features(before, next_token.entropy_L))
        draws = uniform(0, "gate", context.ordinal, torch.arange(length)).clamp(1e-9, 1 - 1e-9)
        return (mean + error * torch.special.ndtri(draws)).float()

    def judge(self, features_PF: Tensor, gain_P: Tensor) -> dict[str, float]:
        """Say how good the gate is on gains that it has not learnt from, as metrics; nothing as
        long as there is none."""
        if self.model is None or not len(gain_P):
            return {}
        expected, error = self.model.predict(features_PF.double())
        variance = error.square() + self.model.noise**2
        loss = 0.5 * ((gain_P - expected).square() / variance + (2 * pi * variance).log())
        found = {
            "gate/loss": float(loss.mean()),
            "gate/expected": float(expected.mean()),
            "gate/pays_frac": float((expected > 0).double().mean()),
        }
        agreement = auc(expected, gain_P > 0)
        return found if agreement is None else {**found, "gate/auc": agreement}

    def observe(self, pages: Sequence[Page], reward_PG: Tensor, gain_PG: Tensor) -> None:
        """Take in the groups of a step, in order. gain_PG: nats a token."""
        seen = Moments.of(torch.cat([p.features_KF for p in pages]), gain_PG.double().mean(dim=1))
        self._moments = seen if self._moments is None else self._moments.then(seen, SHARE)
        self._model = None

    def note_lengths(self, tokens: float, thoughts: float) -> None:
        """Take in how many tokens the thoughts of a step have."""
        self._lengths = self._lengths * SHARE + torch.tensor([tokens, thoughts]).double()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        moments = vars(self._moments) if self._moments else {}
        return {"lengths": self._lengths, **moments}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        sums = {name: tensor.clone() for name, tensor in tensors.items()}
        self._lengths = sums.pop("lengths")
        self._moments = Moments(**sums) if sums else None
        self._model = None
