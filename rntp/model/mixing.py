"""A head that mixes what is predicted with a thought and without one (Quiet-STaR, 2403.09629).

    p(token) = (1 − w) p₀(token) + w p₁(token),   w = σ(s + v · relu(A h₀ + B h₁ + c))

p₀ and h₀: prediction and last hidden state without the thought; p₁ and h₁: with it. The loss is
then never more than −log(1 − w) nats above that without a thought, so that a thought that is of no
use can be turned off. At the start v is 0, and w the same everywhere; s stays as it is.

The paper's text mixes log-probs and its code hidden states, with a w that nothing keeps between 0
and 1 and that starts at 0; here probabilities are mixed, so that the result is one whatever w is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from rntp.errors import ConfigError
from rntp.rng import uniform

FILE = "mixing.safetensors"
NAME = "rntp_mixing"  # of the part of a model
START = -2.0  # s, log-odds of w where nothing else is asked for: 0.12
MOST_UNITS = 256
_START = "start"  # s, in the file; older ones are without


class Mixing(nn.Module):
    """The head that says w. A part of the model: it is trained, saved and split over ranks as all
    of it is. empty, think: A and B, [K, D]. shift, out: c and v, [K]. start: s."""

    def __init__(self, width: int, seed: int = 0, start: float = START) -> None:
        """Make a new head for hidden states of `width` numbers, with K = min(D, 256) units."""
        super().__init__()
        self.start = start
        units = min(width, MOST_UNITS)
        at = torch.arange(units)[:, None], torch.arange(width), torch.arange(2)[:, None, None]
        bound = (2 * width) ** -0.5  # of D + D inputs, as nn.Linear has it
        empty, think = ((2 * uniform(seed, "mixing", *at) - 1) * bound).float()
        self.empty, self.think = nn.Parameter(empty.clone()), nn.Parameter(think.clone())
        self.shift = nn.Parameter(torch.zeros(units))
        self.out = nn.Parameter(torch.zeros(units))

    def forward(self, empty: Tensor, think: Tensor) -> Tensor:
        """Compute log-odds of w from hidden states without and with a thought, [..., D] each, which
        are broadcast: [...], float32, or float64 for float64."""
        wide = torch.float64 if think.dtype == torch.float64 else torch.float32
        of_empty = empty.to(wide) @ self.empty.to(wide).T
        of_think = think.to(wide) @ self.think.to(wide).T
        units = (of_empty + of_think + self.shift.to(wide)).relu()
        return self.start + units @ self.out.to(wide)

    def save(self, folder: Path) -> None:
        """Write the head beside a model's weights."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        start = torch.tensor(self.start, dtype=torch.float64)
        save_file({**tensors, _START: start}, folder / FILE)

    @classmethod
    def beside(cls, spec: str, width: int) -> Self:
        """Read the head of an exported folder. Raises ConfigError where it has none, or one of
        another width."""
        path = Path(spec) / FILE
        if not path.is_file():
            raise ConfigError(
                f"{spec} was trained with a mixing head and has none ({FILE}); export the run "
                "again (rntp ckpt export), or set mixing to false in its rntp.json"
            )
        head = cls(width)
        try:
            found = load_file(path)
            head.start = float(found.pop(_START, START))
            head.to(found["out"].dtype).load_state_dict(found)
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{path} is no mixing head of this model ({' '.join(str(error).split())[:200]}); "
                "export the run again (rntp ckpt export)"
            ) from error
        return head


def mixed_logp(empty_logp: Tensor, think_logp: Tensor, log_odds: Tensor) -> Tensor:
    """log((1 − w) p₀ + w p₁), nats, from log p₀, log p₁ and the log-odds of w; broadcast."""
    return torch.logaddexp(logsigmoid(-log_odds) + empty_logp, logsigmoid(log_odds) + think_logp)


def mixed_probabilities(empty_NV: Tensor, think_NV: Tensor, log_odds_N: Tensor) -> Tensor:
    """(1 − w) p₀ + w p₁ over the whole vocabulary, [N, V], from logits in float32 or better."""
    weight_N1 = log_odds_N.sigmoid()[:, None].to(think_NV.dtype)
    return (1 - weight_N1) * empty_NV.softmax(dim=-1) + weight_N1 * think_NV.softmax(dim=-1)


@contextmanager
def without_mixing(hf: nn.Module) -> Iterator[None]:
    """Take the head off a model inside: for what knows the model's own parts only."""
    head = hf._modules.pop(NAME, None)
    try:
        yield
    finally:
        if head is not None:
            hf.add_module(NAME, head)
