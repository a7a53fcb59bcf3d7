"""The mathematics of one step: tree → log-probs → rewards → advantages; `rntp.objective.loss` goes
on.

One trunk forward gives the no-think baseline (document rows), the reward's log-probs
(continuation rows) and the policy's (thought rows). No side effects: nothing here updates, logs
or saves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.moe import Routing
from rntp.model.thought_tree import BRANCHES, Reads, ThoughtTree, Trunk, live
from rntp.objective import baselines, losses
from rntp.objective.credit import credit
from rntp.objective.reward_inputs import gather
from rntp.objective.rounding import Rounding, sensitivity, tolerance
from rntp.types import RewardInputs, Rollout, no_text


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
            continuation=thoughts * horizon,
            context=sum(len(r.context) - 1 for r in rollouts if not r.context.seen),
            thoughts=thoughts,
            counted_tokens=sum(t.num_drawn for group in counted for t in group),
            counted_thoughts=sum(map(len, counted)),
            expert_choices=tuple(routing.choices_LE.sum(dim=0).tolist()) if routing else (),
            routed=routing.tokens * len(routing.choices_LE) if routing else 0,
        )

    @classmethod
    def total(cls, parts: Sequence["Counts"]) -> "Counts":
        """Of the shares of a step that ranks have, those of the step."""

        def add(numbers: tuple[Any, ...]) -> Any:
            if isinstance(numbers[0], tuple):
                # A share without a microbatch has no routers that it could count.
                return tuple(map(sum, zip(*filter(None, numbers), strict=True)))
            return sum(numbers)

        return cls(*(add(numbers) for numbers in zip(*map(astuple, parts), strict=True)))

    def head_rows(self, config: Config) -> int:
        """Rows of the step that go through the output embedding."""
        return self.thought + self.continuation + self._document_rows(config)

    def learning_rows(self, config: Config) -> int:
        """Those of them that have gradients, where all groups have."""
        reads = loss_reads(config)
        learning = self.thought + self.continuation * reads.continuation
        return learning + self._document_rows(config) * reads.context

    def _document_rows(self, config: Config) -> int:
        empty = self.continuation // max(config.thought.thoughts_per_position, 1)
        document = empty
        if config.objective.ntp_weight > 0:
            # Pages with thoughts in them have the rows of their baselines alone.
            per_page = config.placement.positions_per_doc
            again = empty - empty // per_page if config.placement.interleaved else 0
            document = self.context + again
        return document


@dataclass(frozen=True)
class Scores:
    """What one forward says. Log-probs in nats, with gradients where the forward had them.

    thought_logp_M, thought_entropy_M: at the sampling temperature. think_logp_PGH, empty_logp_PH:
    the continuation with and without the thought. match_PGH: it is the arg-max, with the thought.
    context_logp: plain next-token log-probs, [C], or None where no term needs them. collision_PGH:
    Σ_v p_v² of each prediction with the thought, without gradients, or None if no scheme wants it.
    routing: of the tokens that learn, in a mixture of experts that is watched.
    """

    thought_logp_M: Tensor
    thought_entropy_M: Tensor
    think_logp_PGH: Tensor
    empty_logp_PH: Tensor
    match_PGH: Tensor
    context_logp: Tensor | None
    collision_PGH: Tensor | None = None
    routing: Routing | None = None

    def detached(self) -> "Scores":
        """The same numbers without the graph, for the record."""
        return Scores(
            thought_logp_M=self.thought_logp_M.detach(),
            thought_entropy_M=self.thought_entropy_M.detach(),
            think_logp_PGH=self.think_logp_PGH.detach(),
            empty_logp_PH=self.empty_logp_PH,
            match_PGH=self.match_PGH,
            context_logp=None if self.context_logp is None else self.context_logp.detach(),
            collision_PGH=self.collision_PGH,
            routing=self.routing.detached() if self.routing else None,
        )


@dataclass(frozen=True)
class Judgement:
    """What thoughts are worth, detached.

    rewards: [P, G] under every scheme. reward_PG: of those that drive. driving_PG: the same less a
    penalty that `objective.kl_in: reward` takes off. empty_logp_PH: the baseline, nats.
    advantage_PG, counted_P: what driving_PG gives; see `rntp.objective.credit`. sensitivity_P,
    rounding: how much of what log-probs are rounded by arrives in driving_PG; see
    `rntp.objective.rounding`.
    """

    rewards: dict[str, Tensor]
    reward_PG: Tensor
    driving_PG: Tensor
    empty_logp_PH: Tensor
    advantage_PG: Tensor
    counted_P: Tensor
    sensitivity_P: Tensor
    rounding: Rounding

    def live_P(self, config: Config) -> Tensor:
        """bool [P]: the groups whose thoughts the loss reads."""
        counted_P = self.counted_P
        return counted_P if config.objective.skips_groups else torch.ones_like(counted_P)


def loss_reads(config: Config) -> Reads:
    """What the loss of a run reads."""
    objective = config.objective
    return Reads(objective.ntp_weight > 0, objective.continuation_weight > 0)


def plant(
    model: LanguageModel, rollouts: Sequence[Rollout], horizon: int, reads: Reads = BRANCHES
) -> ThoughtTree:
    """The token tree of a microbatch."""
    return ThoughtTree.build(
        rollouts,
        think_open_id=model.think_open_id,
        think_close_id=model.think_close_id,
        horizon=horizon,
        reads=reads,
    )


def score(
    model: LanguageModel,
    tree: ThoughtTree,
    *,
    temperature: float,
    with_collision: bool = False,
    hidden: Tensor | None = None,
    watch: bool = False,
) -> Scores:
    """The one forward of the trunk, and of the head on the rows that are needed.

    hidden: what that forward gave, [N, H], where the caller has run it for more than the scores.
    watch: for the routers of experts.
    """
    trunk = tree.tree.run(model, watch=watch) if hidden is None else Trunk(hidden)
    hidden = trunk.hidden
    device, shape = hidden.device, tree.think_rows_PGH.shape
    think_rows = tree.think_rows_PGH.flatten()
    think_targets = tree.continuation_PH[:, None].expand(shape).flatten()
    # Rows of pages, each once: a row may belong to many baselines, and to the page's own loss.
    document_rows, where = torch.cat([tree.context_rows, tree.empty_rows_PH.flatten()]).unique(
        return_inverse=True
    )
    document_targets = torch.empty_like(document_rows)
    document_targets[where] = torch.cat([tree.context_targets, tree.continuation_PH.flatten()])
    of_context, of_empty = where.to(device).split(
        [len(tree.context_rows), tree.empty_rows_PH.numel()]
    )

    asked = {
        "thought": _thought_query(tree, temperature),
        "think": _Query(think_rows, think_targets),
        "document": _Query(document_rows, document_targets),
    }
    learning = {"thought": True, "think": tree.reads.continuation, "document": tree.reads.context}
    found = _logprobs(model, hidden, {k: v for k, v in asked.items() if learning[k]})
    with torch.no_grad():
        found |= _logprobs(model, hidden, {k: v for k, v in asked.items() if not learning[k]})
    thought, think, document = found["thought"], found["think"], found["document"]
    collision = None
    if with_collision:
        rows = hidden.detach().index_select(0, think_rows.to(device))
        collision = model.collision(rows).view(shape)
    return Scores(
        thought_logp_M=thought.logp,
        thought_entropy_M=thought.entropy,
        think_logp_PGH=think.logp.view(shape),
        empty_logp_PH=document.logp.detach()[of_empty].view(tree.empty_rows_PH.shape),
        match_PGH=(think.top1 == think_targets.to(device)).view(shape),
        context_logp=document.logp.index_select(0, of_context) if tree.reads.context else None,
        collision_PGH=collision,
        routing=Routing.of(trunk.routed),
    )


def learn(
    model: LanguageModel,
    rollouts: Sequence[Rollout],
    known: Scores,
    live_P: Tensor,
    horizon: int,
    reads: Reads,
    *,
    temperature: float,
    watch: bool = False,
) -> Scores:
    """The scores of an earlier forward of these rollouts, now with gradients for sampled tokens and
    pages, from a tree of these alone; `reads.continuation` must be false.

    live_P: bool, the positions that the loss reads; thoughts elsewhere keep what is known of them.
    """
    live_P = live_P.cpu()
    tree = plant(model, live(rollouts, live_P, reads), horizon, reads)
    trunk = tree.tree.learning_part().run(model, watch=watch)
    hidden = trunk.hidden
    asked = {"thought": _thought_query(tree, temperature)}
    if reads.context:
        asked["context"] = _Query(tree.context_rows, tree.context_targets)
    found = _logprobs(model, hidden, asked)
    groups = [group for r in rollouts for group in r.thoughts]
    drawn_P = torch.tensor([sum(t.num_drawn for t in g) for g in groups], dtype=torch.int64)
    live_M = live_P.repeat_interleave(drawn_P).to(hidden.device)
    thought = found["thought"]
    return replace(
        known,
        thought_logp_M=known.thought_logp_M.detach().masked_scatter(live_M, thought.logp),
        thought_entropy_M=known.thought_entropy_M.detach().masked_scatter(live_M, thought.entropy),
        context_logp=found["context"].logp if reads.context else None,
        routing=Routing.of(trunk.routed),
    )


class _Query(NamedTuple):
    """Rows of the tree, int64 [N], the tokens that they are to predict, and at what temperature."""

    rows: Tensor
    targets: Tensor
    # That of sampling belongs to the policy; how well text is predicted is measured at 1.
    temperature: float = 1.0


def _thought_query(tree: ThoughtTree, temperature: float) -> _Query:
    return _Query(tree.thought_rows, tree.thought_targets, temperature)


class _Found(NamedTuple):
    """Log-probs of the targets and entropies, nats, and arg-max ids; [N] each."""

    logp: Tensor
    entropy: Tensor
    top1: Tensor


def _logprobs(
    model: LanguageModel, hidden: Tensor, asked: Mapping[str, _Query]
) -> dict[str, _Found]:
    """What the head says of some rows of the hidden states [N, H], in one call."""
    if not asked:
        return {}
    device, parts = hidden.device, list(asked.values())
    sizes = [len(part.rows) for part in parts]
    temperatures = torch.tensor([part.temperature for part in parts])
    # index_select, not indexing: its backward adds in a fixed order on the CPU.
    found = model.logprob(
        hidden.index_select(0, torch.cat([part.rows for part in parts]).to(device)),
        torch.cat([part.targets for part in parts]).to(device),
        temperatures.repeat_interleave(torch.tensor(sizes)).to(device),
    )
    pieces = zip(*(x.split(sizes) for x in found), strict=True)
    return {name: _Found(*piece) for name, piece in zip(asked, pieces, strict=True)}


def judge(
    scores: Scores,
    tree: ThoughtTree,
    rollouts: Sequence[Rollout],
    config: Config,
    reference_logp_PH: Tensor | None = None,
    reference_logp_M: Tensor | None = None,
    *,
    decode: Callable[[Tensor], str] = no_text,
    verdicts: Mapping[str, Tensor] | None = None,
) -> Judgement:
    """Rewards of every scheme on the same thoughts, and the advantages of those that drive.

    reference_logp_PH: the continuation without a thought under `baseline.weights`, where those are
    not the weights of this forward; reference_logp_M: the sampled tokens under the weights that
    `objective.kl_weight` keeps them close to. See `rntp.objective.reference_model`. decode: text of
    ids, where a scheme compares texts. verdicts: see `rntp.objective.judge_model`. Where
    `objective.needs_whole_step`, `over_step` has to follow.
    """
    empty = _baseline(scores.empty_logp_PH, reference_logp_PH, config)
    inputs = gather(
        rollouts,
        config,
        logp_think_PGH=scores.think_logp_PGH,
        logp_empty_PH=empty,
        match_PGH=scores.match_PGH,
        continuation_ids_PH=tree.continuation_PH,
        collision_PGH=scores.collision_PGH,
        decode=decode,
        verdicts=verdicts or {},
    )
    under = {name: rewards.REGISTRY[name](inputs) for name in config.reward.names}
    # What grades texts does not see how log-probs are rounded, and may take long.
    likelihoods = [
        name
        for name in config.reward.weights
        if not rewards.NEEDS[name].answers and not rewards.NEEDS[name].judge
    ]

    def from_logprobs(inputs: RewardInputs) -> Tensor:
        again = {name: rewards.REGISTRY[name](inputs) for name in likelihoods}
        return _weighted(under | again, config)

    reward = driving = _weighted(under, config)
    if config.objective.kl_weight > 0 and config.objective.kl_in == "reward":
        assert reference_logp_M is not None
        driving = reward - config.objective.kl_weight * losses.kl_per_thought(
            scores.thought_logp_M.detach(),
            reference_logp_M,
            tree.thought_index.to(reward.device),
            config.objective.kl_estimator,
            thoughts=reward.numel(),
        ).view(reward.shape)
    advantage_PG, counted_P = credit(driving, empty, config)
    return Judgement(
        rewards=under,
        reward_PG=reward,
        driving_PG=driving,
        empty_logp_PH=empty,
        advantage_PG=advantage_PG,
        counted_P=counted_P,
        sensitivity_P=sensitivity(inputs, from_logprobs),
        rounding=Rounding.between(scores.thought_logp_M, sampler_logp(rollouts)),
    )


def sampler_logp(rollouts: Sequence[Rollout]) -> Tensor:
    """Log-probs of the sampled tokens when they were drawn, nats, [M] in the order of the tree."""
    thoughts = [t for r in rollouts for group in r.thoughts for t in group]
    return torch.cat([torch.empty(0), *(t.drawn_logprobs for t in thoughts)])


def over_step(
    judgements: Sequence[Judgement], config: Config, usual_std: float = 0.0
) -> list[Judgement]:
    """The microbatches of a whole step again, with advantages that know all of its rewards.

    usual_std: what groups are measured by; see `rntp.objective.credit`.
    """
    advantage, counted = credit(
        torch.cat([j.driving_PG for j in judgements]),
        torch.cat([j.empty_logp_PH for j in judgements]),
        config,
        usual_std,
        tolerance(
            torch.cat([j.sensitivity_P for j in judgements]),
            Rounding.total([j.rounding for j in judgements]),
        ),
    )
    sizes = [len(j.reward_PG) for j in judgements]
    return [
        replace(judgement, advantage_PG=own_PG, counted_P=own_P)
        for judgement, own_PG, own_P in zip(
            judgements, advantage.split(sizes), counted.split(sizes), strict=True
        )
    ]


def _baseline(current_PH: Tensor, reference_PH: Tensor | None, config: Config) -> Tensor:
    """No-think log-probs that rewards may subtract, [P, H]."""
    if config.baseline.weights == "none":
        return torch.zeros_like(current_PH)
    if config.baseline.weights == "current":
        return current_PH
    assert reference_PH is not None
    return reference_PH


def _weighted(under: dict[str, Tensor], config: Config) -> Tensor:
    """The weighted sum of the schemes that drive, [P, G].

    The floor of `baseline.use: clip` is of each scheme that compares with no thought, before it is
    added to the others (RLPR, 2506.18254).
    """
    parts = []
    for name, weight in config.reward.weights.items():
        compares = rewards.BASELINES[name] != "ignores"
        use = config.baseline.use if compares else "subtract"
        parts.append(weight * baselines.floored(under[name], use))
    return torch.stack(parts).sum(dim=0)
