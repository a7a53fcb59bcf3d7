"""The decision: a thought is worth its place where it is expected to gain more than it costs."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rntp.errors import ConfigError
from rntp.gate.features import features
from rntp.gate.gain_model import GainModel

FILE = "gate.safetensors"


@dataclass(frozen=True)
class Gate:
    """horizon: tokens that a thought was judged by. thought_tokens: mean length of a thought."""

    model: GainModel
    horizon: int
    thought_tokens: float

    def expected(self, hidden: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """Gain of a thought and the error of that estimate, nats a token, float64 [N] each; see
        `rntp.gate.features`."""
        return self.model.predict(features(hidden, entropy))

    def pays(self, hidden: Tensor, entropy: Tensor, price: float = 0.0) -> Tensor:
        """bool [N]: gain · horizon > price · tokens of a thought. price: nats a thought token."""
        gain, _ = self.expected(hidden, entropy)
        return gain * self.horizon > price * self.thought_tokens

    def save(self, folder: Path) -> None:
        """Write the gate beside a model's weights."""
        facts = {"horizon": self.horizon, "thought_tokens": self.thought_tokens}
        tensors = {name: t.contiguous() for name, t in self.model.tensors().items()}
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
            return cls(GainModel.of_tensors(tensors), facts["horizon"], facts["thought_tokens"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); fit the gate again") from error
