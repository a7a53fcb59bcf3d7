"""Reward schemes: one file each, a pure function from `RewardInputs` to rewards [P, G].

A new scheme is a file beside these with one registered function, and a line in the imports below
(or, outside the package, anywhere that runs before the config is checked):

    @rntp.rewards.register("shortest")
    def shortest(inputs: RewardInputs) -> Tensor:
        return -inputs.num_tokens_PG.float()
"""

from collections.abc import Callable

from torch import Tensor

from rntp.registry import Registry
from rntp.types import RewardInputs

Scheme = Callable[[RewardInputs], Tensor]
REGISTRY: Registry[Scheme] = Registry("reward scheme")
register = REGISTRY.register


from rntp.rewards import exact_prefix, log_ratio, logprob  # noqa: E402

__all__ = ["REGISTRY", "Scheme", "exact_prefix", "log_ratio", "logprob", "register"]
