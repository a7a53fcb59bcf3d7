"""What a placement policy learns as the run goes on, and a checkpoint keeps."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from rntp.config import Config
from rntp.gate import GateAlong
from rntp.placement.learnability import Learnability
from rntp.placement.selector import Selector
from rntp.types import Context, NextTokenStats, Page


class Record(Protocol):
    """Predicts, for every position of a context, what thinking there would teach."""

    def of(self, context: Context, next_token: NextTokenStats) -> Tensor:
        """float32 [L], from the no-think prediction of each token."""
        ...

    def observe(self, pages: Sequence[Page], reward_PG: Tensor, gain_PG: Tensor) -> None:
        """Take in a whole step. Rewards: of the scheme that drives; gains: nats a token."""
        ...

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


# Policies that follow a record: two evaluations of a run would look at different positions.
RECORDS: dict[str, type[Record]] = {
    "gate": GateAlong,
    "learnability": Learnability,
    "selector": Selector,
}


def open_record(config: Config) -> Record | None:
    """A new record for the run's policy, or None if nothing goes by one."""
    policy = config.placement.policy
    if policy in RECORDS:
        return RECORDS[policy]()
    return Learnability() if config.repeated_positions else None
