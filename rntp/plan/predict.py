"""Predicts a step: its seconds by part, memory, FLOP utilisation. Pure functions."""

from dataclasses import dataclass

from rntp.config import Config
from rntp.plan.rates import Rates, Seconds
from rntp.plan.work import Share, amounts
from rntp.training.estimate import Shape, attention_flop, full_flop, memory_parts


@dataclass(frozen=True)
class Step:
    """A step of the slowest rank. seconds: by phase and amount. flop: of all ranks, attention
    included; work: those of them that one forward and backward of the tokens need (2 and 4 a
    parameter, 6 a row of the head), which utilisation counts. memory: bytes by part."""

    seconds: Seconds
    flop: float
    memory: dict[str, float]
    ranks: int

    @property
    def total_s(self) -> float:
        """Seconds of all phases."""
        return sum(sum(found.values()) for found in self.seconds.values())

    @property
    def phase_s(self) -> dict[str, float]:
        """Seconds by phase."""
        return {phase: sum(found.values()) for phase, found in self.seconds.items()}

    def utilisation(self, flop_s: float) -> float:
        """FLOP of the step over what so many FLOP/s on each device make in its time. Tokens that
        are shared count once."""
        return self.flop / (self.total_s * self.ranks * flop_s)


def predict(
    config: Config, shape: Shape, rates: Rates, ranks: int = 1, *, recompute: bool = False
) -> Step:
    """Predict a step at full thought length."""
    found = rates.seconds(amounts(Share.of(config, ranks, recompute=recompute), shape))
    flop = full_flop(config, shape) + sum(attention_flop(config, shape).values())
    return Step(found, flop, memory_of(config, shape, ranks, rates, recompute=recompute), ranks)


def memory_of(
    config: Config, shape: Shape, ranks: int, rates: Rates, *, recompute: bool = False
) -> dict[str, float]:
    """Bytes of a rank by part, with a process as large as it was measured."""
    share = Share.of(config, ranks).config
    found = memory_parts(share, shape, ranks, recompute=recompute, kind=rates.kind)
    if rates.process_bytes is not None:
        found["process"] = rates.process_bytes
    return found


def memory_bytes(
    config: Config, shape: Shape, ranks: int, rates: Rates, *, recompute: bool = False
) -> float:
    """Bytes of a rank at the most."""
    return sum(memory_of(config, shape, ranks, rates, recompute=recompute).values())
