"""How far rewards differ by rounding alone, measured: what is below it is no signal.

Sampler and trainer compute the log-probs of the same sampled tokens with the same weights in other
orders. What they differ by, root mean square, is the rounding of one log-prob (0.03 nats with
SmolLM2-135M in bfloat16, 1e-6 in float32). A reward is a function of the continuation's log-probs,
each of which is rounded like that; `sensitivity` is how much of it arrives in the reward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rntp.rng import uniform
from rntp.types import RewardInputs

# Eight equal rewards that differ by rounding lie within 4 standard deviations 9 times out of 10.
RANGE = 4.0
LEAST = 1e-6  # reward units: equal for any purpose

USUAL = {"bfloat16": 0.03, "float32": 1e-6, "float64": 1e-14}  # nats, root mean square

_PATTERNS = 4
_STEP = 1e-6  # nats: a derivative, in float64; no threshold of a scheme is crossed


@dataclass(frozen=True)
class Rounding:
    """What sampler and trainer differ by: squares, nats², summed over so many sampled tokens."""

    squares: float
    tokens: int

    @classmethod
    def between(cls, trainer_logp_M: Tensor, sampler_logp_M: Tensor) -> "Rounding":
        """Compare log-probs of the same tokens under the same weights, nats, [M] each."""
        mismatch_M = trainer_logp_M.detach().double() - sampler_logp_M.to(trainer_logp_M.device)
        return cls(float(mismatch_M.square().sum()), len(mismatch_M))

    @classmethod
    def usual(cls, dtype: str, tokens: int) -> "Rounding":
        """Give what a type of the weights usually has, nats: where a sampler had older weights, it
        differs from the trainer by what has been learnt since, and nothing can be measured."""
        return cls(USUAL[dtype] ** 2 * tokens, tokens)

    @classmethod
    def total(cls, parts: Sequence["Rounding"]) -> "Rounding":
        """Sum the parts of a step."""
        return cls(sum(part.squares for part in parts), sum(part.tokens for part in parts))

    @property
    def nats(self) -> float:
        """Root mean square of a token; 0 where none was sampled."""
        return (self.squares / self.tokens) ** 0.5 if self.tokens else 0.0


def sensitivity(
    inputs: RewardInputs,
    reward: Callable[[RewardInputs], Tensor],
    missing_PG: Tensor | None = None,
) -> Tensor:
    """Compute float64 [P]: standard deviation of a position's rewards per nat of rounding.

    reward: inputs -> [P, G]. For Σ_k γ^k log p_k it is √(Σ_k γ^2k); for a count of matches, 0.
    Root mean square over the position's thoughts and over four sign patterns of the derivative.
    missing_PG: bool, thoughts without a reward, which count as insensitive.
    """
    wide = replace(
        inputs,
        logp_think_PGH=inputs.logp_think_PGH.double(),
        logp_no_think_PH=inputs.logp_no_think_PH.double(),
    )
    at_P1G = reward(wide).double()
    shape = wide.logp_think_PGH.shape
    index = torch.arange(wide.logp_think_PGH.numel(), device=at_P1G.device).view(shape)
    squares = torch.zeros_like(at_P1G)
    for pattern in range(_PATTERNS):
        signs = torch.where(uniform(0, "rounding", index, pattern) < 0.5, -1.0, 1.0)
        signs = inputs.scored(signs)
        moved = replace(wide, logp_think_PGH=wide.logp_think_PGH + _STEP * signs)
        squares += ((reward(moved).double() - at_P1G) / _STEP).square()
    if missing_PG is not None:
        squares = squares.masked_fill(missing_PG.to(squares.device), 0)
    return (squares / _PATTERNS).mean(dim=1).sqrt()


def tolerance(sensitivity_P: Tensor, rounding: Rounding) -> Tensor:
    """Compute [P], reward units: rewards of a group within it are equal but for rounding."""
    return (RANGE * rounding.nats * sensitivity_P).clamp_min(LEAST)
