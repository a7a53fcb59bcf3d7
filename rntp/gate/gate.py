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
WAIT = 0.5  # of the mean gain, that the next token has to have
_NEXT = "next_token/"
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
    shorter: what is known of thoughts that are cut, by length, ascending. next_token: estimate of
    what the token right behind a thought gains, or None.

    A thought that helps later tokens and not the next one can as well come a token later, when more
    is known of whether it will help: see `waits`.
    """

    model: Estimate
    horizon: int
    thought_tokens: float
    shorter: tuple[Length, ...] = ()
    next_token: Estimate | None = None

    def expected(self, hidden: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """Gain of a thought and the error of that estimate, nats a token, float64 [N] each; see
        `rntp.gate.features`."""
        return self.model.predict(self.features(hidden, entropy))

    def features(self, hidden: Tensor, entropy: Tensor) -> Tensor:
        """What this gate looks at, [N, F]; see `rntp.gate.features`."""
        sees = wide if isinstance(self.model, GainNet) else features
        return sees(hidden, entropy)

    def waits(self, features_NF: Tensor) -> Tensor:
        """Where a thought had better come later, bool [N]: one pays, and the next token is expected
        to gain less than half of what tokens gain on average."""
        if self.next_token is None:
            return torch.zeros(len(features_NF), dtype=torch.bool)
        mean, _ = self.model.predict(features_NF)
        return (mean > 0) & (self.next_token.predict(features_NF)[0] < WAIT * mean)

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

    def worth_now(self, features_NF: Tensor) -> Tensor:
        """The same where every token is a place to think: −inf where a thought had better come
        later."""
        waits_N = self.waits(features_NF)
        return self.worth(features_NF).masked_fill(waits_N[:, None], -torch.inf)

    def lengths(self, hidden: Tensor, entropy: Tensor, price: float = 0.0) -> Tensor:
        """Most tokens of the thought that pays best at each place, int64 [N]: 0 where none does,
        `FULL` where the longest does. price: nats a thought token."""
        choice = best_length(self.worth_now(self.features(hidden, entropy)), self.tokens, price)
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
        if self.next_token is not None:
            own = self.next_token.tensors()
            tensors |= {f"{_NEXT}{name}": t.contiguous() for name, t in own.items()}
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
            nearest = _under(_NEXT, tensors)
            return cls(
                _estimate(tensors),
                facts["horizon"],
                facts["thought_tokens"],
                shorter,
                _estimate(nearest) if nearest else None,
            )
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
