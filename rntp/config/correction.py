"""How tokens are weighted that older weights, or another engine, have drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rntp.config.schema import Config

CAP = 2.0
MASK = (0.5, 5.0)


@dataclass(frozen=True)
class Correction:
    """Truncated importance weights of tokens, by the ratio policy / sampler.

    cap: weights are cut there; 0 gives no weights. mask: tokens outside (low, high) do not count;
    (0, 0) counts all. of: whose ratio, of each token or the geometric mean over its thought. start:
    what the ratios of a clipping algorithm start from: the policy of this step's first forward, or
    the sampler, which corrects for both at once.
    """

    cap: float
    mask: tuple[float, float]
    of: Literal["token", "thought"]
    start: Literal["policy", "sampler"]

    @property
    def weighs(self) -> bool:
        """Whether any token counts otherwise than one that the policy drew."""
        return self.cap > 0 or self.mask != (0.0, 0.0)


def correction_of(config: Config) -> Correction:
    """Resolve what the config says, and what stands for null."""
    algorithm = config.objective.algorithm
    # Another engine rounds otherwise, and has drawn from a slightly other policy.
    stale = config.rollout.samplers.max_age > 0 or config.rollout.engine != "inprocess"
    cap, mask = algorithm.get("importance_cap"), algorithm.get("importance_mask")
    has_ratio = algorithm != "policy_gradient"
    # With a cap that is asked for, clipping stays around the policy: decoupled (2505.24298).
    from_sampler = stale and has_ratio and not cap
    if cap is None:
        cap = CAP if stale and not has_ratio else 0.0
    if mask is None:
        mask = MASK if stale else (0.0, 0.0)
    low, high = mask
    return Correction(
        float(cap),
        (float(low), float(high)),
        "thought" if algorithm == "gspo" else algorithm.get("importance_of"),
        "sampler" if from_sampler else "policy",
    )
