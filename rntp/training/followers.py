"""What follows the training and is saved beside the weights: averages of weights, records of
rewards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rntp.config import Config
from rntp.gate import GateAlong
from rntp.model import LanguageModel
from rntp.objective.group_spread import GroupSpread
from rntp.objective.reference_model import Reference, open_reference
from rntp.placement.records import Record, open_record
from rntp.training.alarms import Alarms
from rntp.training.replay import Replay
from rntp.training.step_metrics import WholeStep


class Kept(Protocol):
    """What a checkpoint can hold."""

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Followers:
    """Those that a config asks for; None where it does not.

    gate: learnt along from every group, for the exported model; the record of the placement policy
    of that name. reference: the second set of weights. record: of the placement policy. replay: the
    contexts that may come back. group_spread: the running spread that
    `objective.drop_groups_below` measures by.
    """

    gate: GateAlong | None
    reference: Reference | None
    record: Record | None
    replay: Replay | None
    group_spread: GroupSpread | None

    @classmethod
    def open(cls, config: Config, model: LanguageModel) -> "Followers":
        """Make those of a new run, from the model at its start."""
        record = open_record(config)
        gate = record if isinstance(record, GateAlong) else GateAlong()
        return cls(
            gate=gate if config.thought.thoughts_per_position else None,
            reference=open_reference(model, config, getattr(torch, config.model.dtype)),
            record=record,
            replay=Replay(config) if config.data.replay_docs > 0 else None,
            group_spread=GroupSpread() if config.objective.drop_groups_below else None,
        )

    @property
    def usual_std(self) -> float:
        """Running standard deviation of a group's rewards; 0 where nobody asks."""
        return self.group_spread.mean if self.group_spread else 0.0

    def follow(self, step: WholeStep, masters: Mapping[str, Tensor]) -> None:
        """Take in a step that has moved the weights. masters: these, by name."""
        if self.reference:
            self.reference.update(masters)
        rewarded = step.rewards_PG(step.table.reward_PG), step.table.gain_PG
        if self.gate:
            self.gate.note_lengths(*step.thought_lengths())
        records: dict[int, Record] = {id(r): r for r in (self.record, self.gate) if r}
        for record in records.values():
            record.observe(step.pages, *rewarded)
        if self.replay:
            self.replay.observe(step.pages, step.table.gain_PG)
        if self.group_spread:
            self.group_spread.observe(step.spread_Q)

    def kept(self, alarms: Alarms) -> dict[str, Kept]:
        """List what a checkpoint holds besides weights and moments, by the stem of its files."""
        found: dict[str, Kept | None] = {
            "alarms": alarms,
            "reference": self.reference,
            "placement": None if self.record is self.gate else self.record,
            "gate": self.gate,
            "replay": self.replay,
            "group_spread": self.group_spread,
        }
        return {stem: part for stem, part in found.items() if part is not None}
