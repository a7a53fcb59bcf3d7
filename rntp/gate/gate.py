"""The decision: a thought is worth its place where it is expected to gain more than it costs."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rntp.errors import ConfigError
from rntp.gate.features import features, wide
from rntp.gate.gain_model import GainModel
from rntp.gate.net import GainNet

FILE = "gate.safetensors"
FULL = 1 << 30  # tokens of a thought that may be as long as the model's thoughts are

# A line through few directions, which a run learns along, or networks that see the whole state.
Estimate = GainModel | GainNet


@dataclass(frozen=True)
class Length:
    """Thoughts that are closed after `most` tokens: what they gain, and how long they are."""

    most: int
    model: Estimate
    thought_tokens: float


@dataclass(frozen=True)
class Gate:
    """horizon: tokens that a thought was judged by. thought_tokens: mean length of a thought.
    shorter: what is known of thoughts that are cut, by length, ascending.
    """

    model: Estimate
    horizon: int
    thought_tokens: float
    shorter: tuple[Length, ...] = ()

    def expected(self, hidden: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """Gain of a thought and the error of that estimate, nats a token, float64 [N] each; see
        `rntp.gate.features`."""
        return self.model.predict(self.features(hidden, entropy))

    def features(self, hidden: Tensor, entropy: Tensor) -> Tensor:
        """What this gate looks at, [N, F]; see `rntp.gate.features`."""
        sees = wide if isinstance(self.model, GainNet) else features
        return sees(hidden, entropy)

    @property
    def tokens(self) -> Tensor:
        """Mean tokens of a thought of each length that is known, float64 [B], the longest last."""
        known = [length.thought_tokens for length in self.shorter]
        return torch.tensor([*known, self.thought_tokens], dtype=torch.float64)

    def worth(self, features_NF: Tensor) -> Tensor:
        """What a thought of each length is expected to gain, nats in all, float64 [N, B]."""
        models = [*(length.model for length in self.shorter), self.model]
        gains = [model.predict(features_NF)[0] for model in models]
        return torch.stack(gains, dim=1) * self.horizon

    def lengths(self, hidden: Tensor, entropy: Tensor, price: float = 0.0) -> Tensor:
        """Most tokens of the thought that pays best at each place, int64 [N]: 0 where none does,
        `FULL` where the longest does. price: nats a thought token."""
        choice = best_length(self.worth(self.features(hidden, entropy)), self.tokens, price)
        most = torch.tensor([0, *(length.most for length in self.shorter), FULL])
        return most[choice]

    def save(self, folder: Path) -> None:
        """Write the gate beside a model's weights."""
        lengths = {str(length.most): length.thought_tokens for length in self.shorter}
        facts = {"horizon": self.horizon, "thought_tokens": self.thought_tokens, "shorter": lengths}
        tensors = {name: t.contiguous() for name, t in self.model.tensors().items()}
        for length in self.shorter:
            own = length.model.tensors()
            tensors |= {f"{length.most}/{name}": t.contiguous() for name, t in own.items()}
        save_file(tensors, folder / FILE, metadata={"gate": json.dumps(facts)})

    @classmethod
    def beside(cls, spec: str) -> "Gate":
        """The gate of an exported folder. Raises ConfigError where it has none."""
        path = Path(spec) / FILE
        if not path.is_file():
            raise ConfigError(
                f"{spec} has no gate ({FILE}); fit one (rntp gate RUN_DIR MODEL), or think by "
                "another rule"
            )
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["gate"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shorter = tuple(
                Length(int(most), _estimate(_under(f"{most}/", tensors)), mean)
                for most, mean in facts.get("shorter", {}).items()
            )
            return cls(_estimate(tensors), facts["horizon"], facts["thought_tokens"], shorter)
        except (SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); fit the gate again") from error


def best_length(worth_NB: Tensor, tokens_B: Tensor, price: float) -> Tensor:
    """Which length pays best at each place, int64 [N]: 0 for none, else 1 + its number.

    worth_NB: nats that a thought gains; tokens_B: that it takes. Of two that pay alike the one
    with fewer tokens.
    """
    net_NB = worth_NB - price * tokens_B
    nothing = net_NB.new_zeros(len(net_NB), 1)
    net = torch.cat([nothing, net_NB], dim=1)
    most = net.amax(dim=1, keepdim=True)
    return (net == most).to(torch.int8).argmax(dim=1)


def _estimate(found: dict[str, Tensor]) -> Estimate:
    return GainNet.of_tensors(found) if "first" in found else GainModel.of_tensors(found)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
