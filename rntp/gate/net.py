"""A gain that small networks foresee: for a gate that is fitted once, to gains all over pages.

Where thinking helps is often no line through a hidden state: a question that can be answered is
one kind of token among many. Several networks learn it, each from other pages; what they say of
the pages that they were not shown tells when to stop, how far they may be believed, and how much is
left that nobody can foresee (a Bayesian regression on what is learnt, arXiv 1802.09127).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from rntp.gate.gain_model import GainModel

MEMBERS = 10
WIDTH = 64
ROUNDS, PATIENCE = 60, 8  # over the gains; and without anything better before it ends
BATCH = 256
RATE, DECAYS = 2e-3, (1.0, 0.1)  # of weights: for few gains that are noisy, and for many
_PARTS = ("first", "first_bias", "second", "second_bias", "last", "last_bias")
_LINE = "line/"


@dataclass(frozen=True)
class GainNet:
    """gain = line(mean over networks of what they say) + noise.

    The line is of what single networks say of pages that they were not shown. Their mean is less
    noisy than that, so that estimates are nearer to the mean gain than they need be, by up to a
    quarter where gains are noisy (tests/gate/test_net.py).

    parts: of `MEMBERS` networks of two hidden layers, float32, [M, …] each. centre, scale: [F], of
    the features. line: the regression of gains on what networks said of pages not shown to them.
    """

    parts: tuple[Tensor, ...]
    centre: Tensor
    scale: Tensor
    line: GainModel

    @property
    def noise(self) -> float:
        """Standard deviation of a gain around its estimate, nats a token."""
        return self.line.noise

    @classmethod
    def fit(cls, features_NF: Tensor, gain_N: Tensor, document_N: Tensor) -> "GainNet":
        """Fit to features [N, F] (`rntp.gate.features.wide`) and gains [N], nats a token.

        document_N: number of the page, by which networks are shown different ones. The same
        arguments give the same networks. Raises ValueError for fewer than two pages.
        """
        names, page_N = document_N.unique(return_inverse=True)
        if len(names) < 2:
            raise ValueError("networks that check each other want gains of two pages at least")
        x, y = features_NF.float(), gain_N.float()
        centre, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        spread = y.std().clamp_min(1e-6)
        fold_N = page_N % min(MEMBERS, len(names))
        given = ((x - centre) / scale, (y - y.mean()) / spread, fold_N, int(fold_N.max()) + 1)
        # The decay that foretells pages better which were not shown.
        parts, unseen_N, _ = min((_train(*given, decay) for decay in DECAYS), key=lambda t: t[2])
        line = GainModel.fit(unseen_N.double()[:, None], gain_N.double())
        return cls(parts, centre, scale, line)

    @torch.no_grad()
    def predict(self, features_NF: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates and their standard deviations, nats a token, float64 [N] each; the noise of a
        single gain is not in them."""
        x = (features_NF.float() - self.centre) / self.scale
        said_MN = _said(self.parts, x).double()
        mean, error = self.line.predict(said_MN.mean(dim=0)[:, None])
        slope = self.line.weights / self.line.scale
        return mean, (error.square() + (slope * said_MN.std(dim=0)).square()).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a file keeps."""
        line = {f"{_LINE}{name}": tensor for name, tensor in self.line.tensors().items()}
        own = dict(zip(_PARTS, self.parts, strict=True))
        return {**own, "centre": self.centre, "scale": self.scale, **line}

    @classmethod
    def of_tensors(cls, found: dict[str, Tensor]) -> "GainNet":
        """Take back what `tensors` gave. Raises KeyError where something is missing."""
        line = {n.removeprefix(_LINE): t for n, t in found.items() if n.startswith(_LINE)}
        parts = tuple(found[name] for name in _PARTS)
        return cls(parts, found["centre"], found["scale"], GainModel.of_tensors(line))


def _said(parts: Iterable[Tensor], x_NF: Tensor) -> Tensor:
    """What each network says, [M, N], in units of the gains' spread."""
    first, first_bias, second, second_bias, last, last_bias = parts
    hidden = torch.relu(x_NF @ first + first_bias)
    hidden = torch.relu(torch.baddbmm(second_bias, hidden, second))
    return torch.baddbmm(last_bias, hidden, last)[:, :, 0]


def _wrong(said: Tensor, y: Tensor) -> Tensor:
    """Squared error, whose best answer is the mean gain: a robust loss lets a rare thought that
    costs seven nats pass for one that costs one."""
    return mse_loss(said, y.expand_as(said), reduction="none")


def _train(
    x_NF: Tensor, y_N: Tensor, fold_N: Tensor, members: int, decay: float
) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """Train networks, each without the pages of its own fold, for as many rounds as are best for
    the pages left out; their weights, what each says of its fold, [N], and the loss there."""
    draw = torch.Generator().manual_seed(0)
    parts = _fresh(members, x_NF.shape[1], draw)
    shown_MN = (fold_N != torch.arange(members)[:, None]).float()
    optimizer = torch.optim.AdamW(parts, lr=RATE, weight_decay=decay)
    least, best, waited = float("inf"), (tuple(parts), torch.zeros_like(y_N)), 0
    for _ in range(ROUNDS):
        for rows in torch.randperm(len(y_N), generator=draw).split(BATCH):
            with torch.enable_grad():
                loss = (_wrong(_said(parts, x_NF[rows]), y_N[rows]) * shown_MN[:, rows]).sum()
                loss = loss / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            unseen_N = _said(parts, x_NF).gather(0, fold_N[None])[0]
        left = float(_wrong(unseen_N, y_N).mean())
        if left < least:
            least, waited = left, 0
            best = tuple(part.detach().clone() for part in parts), unseen_N
        elif (waited := waited + 1) == PATIENCE:
            break
    return *best, least


def _fresh(members: int, features: int, draw: torch.Generator) -> list[Tensor]:
    """Weights before training (He et al., 1502.01852), biases 0."""
    sizes = ((features, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))
    parts = []
    for inputs, outputs in sizes:
        weight = torch.randn(members, inputs, outputs, generator=draw) * (2 / inputs) ** 0.5
        parts += [weight.requires_grad_(), torch.zeros(members, 1, outputs, requires_grad=True)]
    return parts
