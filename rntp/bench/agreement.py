"""Do two providers compute the same? Relative differences of losses, gradients and log-probs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a provider computed: its loss in nats, and tensors in float32 by name."""

    loss: float
    tensors: Tensors


def gradients_of(model: nn.Module, backward: Callable[[], float]) -> Outcome:
    """The loss that `backward` returns, and what it leaves in the parameters; they are cleared."""
    model.zero_grad(set_to_none=True)
    value = backward()
    found = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return Outcome(value, found)


def difference(own: Outcome, other: Outcome) -> float:
    """The larger of the relative differences of the losses and of the tensors."""
    gap = abs(own.loss - other.loss) / max(abs(other.loss), 1e-9)
    return max(relative_difference(own.tensors, other.tensors), gap)


def relative_difference(own: Tensors, other: Tensors) -> float:
    """‖own − other‖ / ‖other‖ over all tensors; a missing one counts as zero."""
    square, norm = 0.0, 0.0
    for name in own.keys() | other.keys():
        known = own[name] if name in own else other[name]
        mine, theirs = (found.get(name, torch.zeros_like(known)) for found in (own, other))
        square += float((mine - theirs).double().square().sum())
        norm += float(theirs.double().square().sum())
    return (square / max(norm, 1e-300)) ** 0.5
