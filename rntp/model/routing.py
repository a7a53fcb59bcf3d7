"""What the routers of a mixture of experts said of the tokens of a forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Routed:
    """Of one layer. logits: [N, E], with gradients if they are on. chosen: int64 [N, k], the
    experts that tokens went to."""

    logits: Tensor
    chosen: Tensor

    def at(self, rows: Tensor) -> "Routed":
        """Pick some tokens, int64 [N']."""
        return Routed(self.logits.index_select(0, rows), self.chosen.index_select(0, rows))

    def until(self, number: int) -> "Routed":
        """Keep the first so many tokens."""
        return Routed(self.logits[:number], self.chosen[:number])

    @classmethod
    def joined(cls, parts: Sequence["Routed"], order: Tensor | None = None) -> "Routed":
        """Join parts one after the other, then put them in this order, int64 [N]."""
        whole = cls(torch.cat([p.logits for p in parts]), torch.cat([p.chosen for p in parts]))
        return whole if order is None else whole.at(order)


def routers(hf: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The modules whose router logits transformers records, and which of their outputs these are;
    none for a model without experts."""
    kinds: dict[type, int] = {}
    for part in hf.modules():
        recorded = getattr(part, "_can_record_outputs", None) or {}
        asked = recorded.get("router_logits") or []
        for recorder in asked if isinstance(asked, list | tuple) else [asked]:
            kind = getattr(recorder, "target_class", recorder)
            if isinstance(kind, type):
                kinds[kind] = int(getattr(recorder, "index", 0))
    found = []
    for module in hf.modules():
        index = next((i for kind, i in kinds.items() if isinstance(module, kind)), None)
        if index is not None:
            found.append((module, index))
    return found


_BALANCING = ("score_correction_bias", "expert_bias")


def balancing_biases(hf: PreTrainedModel) -> list[str]:
    """Buffers and parameters that steer which experts are chosen and that no gradient reaches
    (2408.15664): they would be moved by hand after each step, and here they are not."""
    everything = [*hf.named_parameters(), *hf.named_buffers()]
    return sorted(name for name, _ in everything if name.endswith(_BALANCING))


@contextmanager
def watched_routers(hf: PreTrainedModel, watch: bool = True) -> Iterator[list[Routed]]:
    """Inside, each call of a router is written down, in order; nothing without `watch`.

    Layers that are computed again for the backward are not written down again: that is later.
    """
    seen: list[Routed] = []

    def note(index: int, given: Any) -> None:
        outputs = given if isinstance(given, tuple) else (given,)
        logits = outputs[index].flatten(end_dim=-2)
        seen.append(Routed(logits, _chosen(hf, outputs, logits)))

    handles = []
    for module, index in routers(hf) if watch else ():
        handles.append(
            module.register_forward_hook(lambda _m, _i, out, index=index: note(index, out))
        )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _chosen(hf: PreTrainedModel, outputs: tuple[Any, ...], logits: Tensor) -> Tensor:
    """The experts that a router says it has chosen, or those of the highest logits, [N, k].

    With a bias for balance (DeepSeek-V3) and with groups of experts the two differ.
    """
    for output in reversed(outputs):
        whole = isinstance(output, Tensor) and not output.is_floating_point()
        if whole and output.ndim >= 2 and output[..., 0].numel() == len(logits):
            return output.flatten(end_dim=-2)
    text = hf.config.get_text_config()
    k = int(getattr(text, "num_experts_per_tok", None) or 1)
    return logits.detach().topk(min(k, logits.shape[-1]), dim=-1).indices
