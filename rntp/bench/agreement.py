"""Do two providers compute the same? Relative differences of losses, gradients and log-probs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]


def gradients_of(model: nn.Module, backward: Callable[[], float]) -> tuple[float, Gradients]:
    """The loss that `backward` returns, and what it leaves in the parameters; they are cleared."""
    model.zero_grad(set_to_none=True)
    value = backward()
    found = {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return value, found


def relative_difference(own: Gradients, other: Gradients) -> float:
    """‖own − other‖ / ‖other‖ over all parameters; a missing gradient counts as zero."""
    square, norm = 0.0, 0.0
    for name in own.keys() | other.keys():
        a, b = own.get(name), other.get(name)
        known = a if b is None else b
        assert known is not None
        a, b = (torch.zeros_like(known) if x is None else x for x in (a, b))
        square += float((a - b).double().square().sum())
        norm += float(b.double().square().sum())
    return (square / max(norm, 1e-300)) ** 0.5
