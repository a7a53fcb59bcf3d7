"""What one step is made of: its denominators, its log-probs, its rewards and advantages."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.model.moe import Routing
from rntp.model.reading import LossReads
from rntp.objective.rounding import Rounding
from rntp.types import Rollout


def loss_reads(config: Config) -> LossReads:
    """Return what the loss of a run reads."""
    objective = config.objective
    window = config.reading.window
    return LossReads(objective.ntp_weight > 0, objective.continuation_weight > 0, window)


@dataclass(frozen=True)
class Counts:
    """Denominators of a whole step, known before its first backward.

    thought, continuation, context: tokens of these kinds; thought: those that were sampled, of
    thoughts and answers. thoughts: their number. counted_tokens, counted_thoughts: sampled tokens
    and thoughts of the groups that count in the policy gradient. expert_choices, routed: see
    `rntp.model.moe.balancing_loss`.
    """

    thought: int
    continuation: int
    context: int
    thoughts: int
    counted_tokens: int
    counted_thoughts: int
    expert_choices: tuple[int, ...] = ()
    routed: int = 0

    @classmethod
    def of(
        cls,
        rollouts: Sequence[Rollout],
        horizon: int,
        counted_P: Tensor | None = None,
        routing: Routing | None = None,
    ) -> "Counts":
        """counted_P: bool, the groups that count, where some do not; see `rntp.objective.credit`.
        routing: of the tokens that learn, where a term balances experts."""
        groups = [group for r in rollouts for group in r.thoughts]
        thoughts = sum(map(len, groups))
        counted = groups
        if counted_P is not None:
            counted = [g for g, counts in zip(groups, counted_P.tolist(), strict=True) if counts]
        return cls(
            thought=sum(r.num_sampled for r in rollouts),
            continuation=sum(
                len(group) * r.context.num_scored(horizon) for r in rollouts for group in r.thoughts
            ),
            context=sum(len(r.context.predicted) for r in rollouts if not r.context.seen),
            thoughts=thoughts,
            counted_tokens=sum(t.num_drawn for group in counted for t in group),
            counted_thoughts=sum(map(len, counted)),
            expert_choices=tuple(routing.choices_LE.sum(dim=0).tolist()) if routing else (),
            routed=routing.tokens * len(routing.choices_LE) if routing else 0,
        )

    def sums(self) -> dict[str, Tensor]:
        """Give the numbers as tensors that add up over the shares of a step, by field."""
        return {name: torch.tensor(value) for name, value in asdict(self).items()}

    @classmethod
    def of_sums(cls, sums: Mapping[str, Tensor]) -> "Counts":
        """Read the counts of a step from the sum over its shares."""
        found: dict[str, Any] = {name: part.long().tolist() for name, part in sums.items()}
        return cls(**{**found, "expert_choices": tuple(found["expert_choices"])})

    def head_rows(self, config: Config) -> int:
        """Rows of the step that go through the output embedding."""
        bare = self.empty(config) if config.reading.window is not None else 0
        return self.thought + self.continuation + self._document_rows(config) + bare

    def learning_rows(self, config: Config) -> int:
        """Count the sampled rows that have gradients, where all groups have."""
        reads = loss_reads(config)
        read = self.continuation
        if config.reading.window is not None:
            read += self.empty(config)
        learning = self.thought + read * reads.continuation
        # What predictions with a thought are mixed with learns, too.
        return learning + self._document_rows(config) * (reads.context or config.mixes_pages)

    def empty(self, config: Config) -> int:
        """Rows that predict continuations without a thought."""
        return self.continuation // max(config.thought.thoughts_per_position, 1)

    def _document_rows(self, config: Config) -> int:
        document = empty = self.empty(config)
        if config.objective.ntp_weight > 0:
            # Pages with thoughts in them have the rows of their baselines alone.
            per_page = config.placement.positions_per_doc
            again = empty - empty // per_page if config.reads_again else 0
            document = self.context + again
        return document


@dataclass(frozen=True)
class ForwardOutputs:
    """What one forward says. Log-probs in nats, with gradients where the forward had them.

    thought_logp_M, thought_entropy_M: at the sampling temperature. think_logp_PGH,
    no_think_logp_PH: the continuation with and without the thought. whole_logp_PH: without it and
    behind the whole context, where a reading window loses some; else the latter. match_PGH: it is
    the arg-max, with the thought. context_logp: plain next-token log-probs, [C], or None where no
    term needs them. bare_logp_PH: no_think_logp_PH with gradients, where a window is read with a
    memory and without one, and learnt; else None. collision_PGH: Σ_v p_v² of each prediction with
    the thought, without gradients, or None if no scheme wants it. weight_PGH, alone_logp_PGH: where
    predictions with a thought are mixed with those without, the thought's weight, and log-probs
    behind it alone, both without gradients; else None (see `rntp.model.mixing`). routing: of the
    tokens that learn, in a mixture of experts that is watched. features_PF: what a gate looks at
    before each position, float64 on the CPU; see `rntp.gate.features`.
    """

    thought_logp_M: Tensor
    thought_entropy_M: Tensor
    think_logp_PGH: Tensor
    no_think_logp_PH: Tensor
    whole_logp_PH: Tensor
    match_PGH: Tensor
    context_logp: Tensor | None
    bare_logp_PH: Tensor | None = None
    collision_PGH: Tensor | None = None
    weight_PGH: Tensor | None = None
    alone_logp_PGH: Tensor | None = None
    routing: Routing | None = None
    features_PF: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def detached(self) -> "ForwardOutputs":
        """The same numbers without the graph, for the record."""
        return ForwardOutputs(
            thought_logp_M=self.thought_logp_M.detach(),
            thought_entropy_M=self.thought_entropy_M.detach(),
            think_logp_PGH=self.think_logp_PGH.detach(),
            no_think_logp_PH=self.no_think_logp_PH,
            whole_logp_PH=self.whole_logp_PH,
            match_PGH=self.match_PGH,
            context_logp=None if self.context_logp is None else self.context_logp.detach(),
            bare_logp_PH=None if self.bare_logp_PH is None else self.bare_logp_PH.detach(),
            collision_PGH=self.collision_PGH,
            weight_PGH=self.weight_PGH,
            alone_logp_PGH=self.alone_logp_PGH,
            routing=self.routing.detached() if self.routing else None,
            features_PF=self.features_PF,
        )


@dataclass(frozen=True)
class OtherLogprobs:
    """Log-probs of the sampled tokens under other weights than this forward's: nats, detached, [M].

    sampler: when they were drawn. reference: what the KL term holds on to, None without one. old:
    of the policy that the first epoch saw; None on that epoch itself, where the ratio is 1 and all
    algorithms have the gradient of the plain one.
    """

    sampler_logp_M: Tensor
    reference_logp_M: Tensor | None = None
    old_logp_M: Tensor | None = None


@dataclass(frozen=True)
class RewardsAndAdvantages:
    """What thoughts are worth, detached.

    rewards: [P, G] under every scheme. reward_PG: of those that drive. driving_PG: the same less a
    penalty that `in: reward` of `objective.kl` takes off. no_think_logp_PH: the baseline, nats.
    advantage_PG, counted_P: what driving_PG gives; see `rntp.objective.credit`. group_P: int64,
    the group of each row of thoughts. sensitivity_P, rounding: how much of what log-probs are
    rounded by arrives in driving_PG; see `rntp.objective.rounding`. right_PG: what the rules of
    tasks give the answers; None without any.
    """

    rewards: dict[str, Tensor]
    reward_PG: Tensor
    driving_PG: Tensor
    no_think_logp_PH: Tensor
    advantage_PG: Tensor
    counted_P: Tensor
    group_P: Tensor
    sensitivity_P: Tensor
    rounding: Rounding
    right_PG: Tensor | None = None

    def live_P(self, config: Config) -> Tensor:
        """bool [P]: the groups whose thoughts the loss reads."""
        counted_P = self.counted_P
        return counted_P if config.objective.skips_groups else torch.ones_like(counted_P)


# What one forward of a microbatch gave, and what its thoughts are worth.
Known = tuple[ForwardOutputs, RewardsAndAdvantages, OtherLogprobs]
