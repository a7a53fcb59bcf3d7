"""Placement policies: one file each, a pure function that scores the eligible positions.

The K positions with the highest scores are thought at. Scores come for free: prefilling the
context for sampling already yields every next-token entropy and loss.
"""

from collections.abc import Callable

from torch import Tensor

from rntp.registry import Registry
from rntp.types import PlacementInputs

Policy = Callable[[PlacementInputs], Tensor]
REGISTRY: Registry[Policy] = Registry("placement policy")
register = REGISTRY.register


def place(
    policy: Policy, inputs: PlacementInputs, *, count: int, min_prefix: int, horizon: int
) -> tuple[int, ...]:
    """The `count` best positions p, ascending, with min_prefix <= p <= L − horizon.

    inputs: of the whole context. Raises ValueError if it has fewer eligible positions.
    """
    first, last = min_prefix, inputs.entropy_L.shape[0] - horizon
    if last - first + 1 < count:
        raise ValueError(f"{max(0, last - first + 1)} eligible positions, {count} wanted")
    best = policy(inputs.between(first, last + 1)).topk(count).indices + first
    return tuple(sorted(best.tolist()))


from rntp.placement import by_class, entropy, learnability, oracle, random  # noqa: E402

__all__ = [
    "REGISTRY",
    "Policy",
    "by_class",
    "entropy",
    "learnability",
    "oracle",
    "place",
    "random",
    "register",
]
