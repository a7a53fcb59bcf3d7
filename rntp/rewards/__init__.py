"""Reward schemes: one file each, a pure function from `RewardInputs` to rewards [P, G].

A new scheme is a file beside these with one registered function, and a line in the imports below
(or, outside the package, anywhere that runs before the config is checked):

    @rntp.rewards.register("shortest")
    def shortest(inputs: RewardInputs) -> Tensor:
        return -inputs.num_tokens_PG.float()
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from rntp.registry import Registry
from rntp.types import RewardInputs

Scheme = Callable[[RewardInputs], Tensor]
REGISTRY: Registry[Scheme] = Registry("reward scheme")

# What a scheme does with the no-think prediction. One that subtracts (or needs it, to subtract and
# more) gives a thought that changes nothing a reward of 0.
UseOfBaseline = Literal["ignores", "subtracts", "needs"]
BASELINES: dict[str, UseOfBaseline] = {}


def register(name: str, *, baseline: UseOfBaseline = "ignores") -> Callable[[Scheme], Scheme]:
    """Decorator that adds a scheme. Raises ValueError if the name is taken."""

    def add(scheme: Scheme) -> Scheme:
        REGISTRY.register(name)(scheme)
        BASELINES[name] = baseline
        return scheme

    return add


from rntp.rewards import (  # noqa: E402
    exact_prefix,
    exact_token,
    format_only,
    log_ratio,
    logprob,
    mean_prob,
    random,
    weighted_log_ratio,
)

__all__ = [
    "BASELINES",
    "REGISTRY",
    "Scheme",
    "exact_prefix",
    "exact_token",
    "format_only",
    "log_ratio",
    "logprob",
    "mean_prob",
    "random",
    "register",
    "weighted_log_ratio",
]
