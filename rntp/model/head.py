"""What a model does between its last hidden states and the logits that are sampled from."""

from dataclasses import dataclass

from rntp_kernels import Shaping, float32_logits
from torch import Tensor, nn

# A module's attribute: the float32 copy of its weight, while `rntp.model.packed_weights` keeps one.
WEIGHT_FLOAT32 = "_rntp_weight_float32"


@dataclass(frozen=True)
class Head:
    """logits = c · tanh(s · (neck(hidden) @ weight.T + bias) / c), of the first `vocabulary` rows.

    neck: name of the model's part between its last hidden states and the product, or None: there is
    none. scale: s. soft_cap: c, or None: there is none. vocabulary: rows behind it are padding,
    which no tokenizer knows: they are never drawn and have no share of any softmax; None: all rows
    count.
    Weight and bias are the output embedding's.
    """

    scale: float = 1.0
    soft_cap: float | None = None
    vocabulary: int | None = None
    neck: str | None = None

    @property
    def shaping(self) -> Shaping:
        """The same, as the kernels take it."""
        return Shaping(self.soft_cap, self.vocabulary, scale=self.scale)

    def shaped(self, raw: Tensor) -> Tensor:
        """Shape raw logits, [N, V] in float32 or better, as `linear_logprob` does."""
        if self.vocabulary is not None:
            raw = raw[:, : self.vocabulary]
        return self.scaled(raw)

    def scaled(self, raw: Tensor) -> Tensor:
        """Scale and cap raw logits of any columns; padding is not looked for."""
        if self.scale == 1.0 and self.soft_cap is None:
            return raw
        raw = raw * self.scale
        return raw if self.soft_cap is None else self.soft_cap * (raw / self.soft_cap).tanh()


def weight_of(module: nn.Module | None) -> Tensor:
    """An embedding's weight, [V, H]. Raises TypeError if it has none."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight")
    return weight


def bias_of(module: nn.Module | None) -> Tensor | None:
    """An output embedding's bias, [V], or None."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def raw_logits(module: nn.Module, hidden: Tensor) -> Tensor:
    """Compute the product alone, hidden [N, H] -> [N, V], whatever else the module does; float32,
    or float64 for float64."""
    copy = vars(module).get(WEIGHT_FLOAT32)
    return float32_logits(hidden, weight_of(module), bias_of(module), weight_float32=copy)
