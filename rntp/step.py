"""The mathematics of one step: tree → log-probs → rewards → advantages → loss.

One trunk forward gives the no-think baseline (document rows), the reward's log-probs
(continuation rows) and the policy's (thought rows). No side effects: nothing here updates, logs
or saves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rntp import baselines, losses, rewards
from rntp.advantages import advantages
from rntp.chance import uniform
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.tree import ThoughtTree
from rntp.types import RewardInputs, Rollout


@dataclass(frozen=True)
class Counts:
    """Denominators of a whole step, known before its first forward: tokens of each loss term."""

    thought: int
    continuation: int
    context: int

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], horizon: int) -> "Counts":
        thoughts = sum(len(group) for r in rollouts for group in r.thoughts)
        return cls(
            thought=sum(r.num_sampled for r in rollouts),
            continuation=thoughts * horizon,
            context=sum(len(r.context) - 1 for r in rollouts),
        )

    def head_rows(self, config: Config) -> int:
        """Rows of the step that go through the output embedding."""
        empty = self.continuation // max(config.thought.thoughts_per_position, 1)
        document = self.context if config.objective.ntp_weight > 0 else empty
        return self.thought + self.continuation + document


@dataclass(frozen=True)
class Scores:
    """What one forward says. Log-probs in nats, with gradients where the forward had them.

    thought_logp_M, thought_entropy_M: at the sampling temperature. think_logp_PGH, empty_logp_PH:
    the continuation with and without the thought. match_PGH: it is the arg-max, with the thought.
    context_logp: plain next-token log-probs, [C], or None where no term needs them.
    """

    thought_logp_M: Tensor
    thought_entropy_M: Tensor
    think_logp_PGH: Tensor
    empty_logp_PH: Tensor
    match_PGH: Tensor
    context_logp: Tensor | None

    def detached(self) -> "Scores":
        """The same numbers without the graph, for the record."""
        return Scores(
            thought_logp_M=self.thought_logp_M.detach(),
            thought_entropy_M=self.thought_entropy_M,
            think_logp_PGH=self.think_logp_PGH.detach(),
            empty_logp_PH=self.empty_logp_PH,
            match_PGH=self.match_PGH,
            context_logp=None if self.context_logp is None else self.context_logp.detach(),
        )


@dataclass(frozen=True)
class Judgement:
    """Rewards [P, G] under every scheme, the one that drives, and the advantages it gives."""

    rewards: dict[str, Tensor]
    reward_PG: Tensor
    advantage_PG: Tensor


@dataclass(frozen=True)
class Loss:
    """The weighted total (differentiable) and its unweighted terms, each already divided."""

    total: Tensor
    pg: Tensor
    continuation: Tensor
    ntp: Tensor
    clipped_tokens: Tensor


def plant(model: LanguageModel, rollouts: Sequence[Rollout], horizon: int) -> ThoughtTree:
    """The token tree of a microbatch."""
    return ThoughtTree.build(
        rollouts,
        think_open_id=model.think_open_id,
        think_close_id=model.think_close_id,
        horizon=horizon,
    )


def score(
    model: LanguageModel,
    tree: ThoughtTree,
    *,
    temperature: float,
    with_context: bool,
    hidden: Tensor | None = None,
) -> Scores:
    """The one forward of the trunk, and of the head on the rows that are needed.

    hidden: what that forward gave, [N, H], where the caller has run it for more than the scores.
    """
    hidden = tree.tree.hidden(model) if hidden is None else hidden
    device = hidden.device
    document_rows = tree.context_rows if with_context else tree.empty_rows_PH.flatten()
    document_targets = tree.context_targets if with_context else tree.continuation_PH.flatten()
    shape = tree.think_rows_PGH.shape
    think_targets = tree.continuation_PH[:, None].expand(shape).flatten()
    rows = torch.cat([tree.thought_rows, tree.think_rows_PGH.flatten(), document_rows])
    targets = torch.cat([tree.thought_targets, think_targets, document_targets])
    sizes = [len(tree.thought_rows), think_targets.shape[0], len(document_rows)]
    # The temperature belongs to the policy; how well text is predicted is measured at 1.
    temperatures = torch.ones(len(rows))
    temperatures[: sizes[0]] = temperature

    # index_select, not indexing: its backward adds in a fixed order on the CPU.
    logp, entropy, top1 = model.logprob(
        hidden.index_select(0, rows.to(device)), targets.to(device), temperatures.to(device)
    )
    thought_logp, think_logp, document_logp = logp.split(sizes)
    match = (top1 == targets.to(device)).split(sizes)[1]
    if with_context:
        where = torch.searchsorted(tree.context_rows, tree.empty_rows_PH).to(device)
        empty_logp = document_logp.detach()[where]
    else:
        empty_logp = document_logp.detach().view(tree.empty_rows_PH.shape)
    return Scores(
        thought_logp_M=thought_logp,
        thought_entropy_M=entropy.split(sizes)[0].detach(),
        think_logp_PGH=think_logp.view(shape),
        empty_logp_PH=empty_logp,
        match_PGH=match.view(shape),
        context_logp=document_logp if with_context else None,
    )


def judge(
    scores: Scores,
    tree: ThoughtTree,
    rollouts: Sequence[Rollout],
    config: Config,
    reference_logp_PH: Tensor | None = None,
) -> Judgement:
    """Rewards of every scheme on the same thoughts, and the advantages of the one that drives.

    reference_logp_PH: the continuation without a thought under `baseline.weights`, where those are
    not the weights of this forward; see `rntp.reference`.
    """
    device, shape = scores.think_logp_PGH.device, scores.think_logp_PGH.shape[:2]
    thoughts = [group for r in rollouts for group in r.thoughts]
    empty = _baseline(scores.empty_logp_PH, reference_logp_PH, config)
    inputs = RewardInputs(
        logp_think_PGH=scores.think_logp_PGH.detach(),
        logp_empty_PH=empty,
        has_baseline=config.baseline.weights != "none",
        match_PGH=scores.match_PGH,
        num_tokens_PG=torch.tensor(
            [[t.num_tokens for t in g] for g in thoughts], device=device
        ).view(shape),
        closed_PG=torch.tensor(
            [[t.closed for t in g] for g in thoughts], dtype=torch.bool, device=device
        ).view(shape),
        continuation_ids_PH=tree.continuation_PH,
        thought_ids=[[t.sampled_ids[: t.num_tokens] for t in g] for g in thoughts],
        noise_PG=_noise(rollouts, scores.match_PGH.shape[1], config.run.seed).to(device),
        discount=config.reward.discount,
    )
    names = dict.fromkeys([config.reward.scheme, *config.reward.shadows])
    under = {name: rewards.REGISTRY[name](inputs) for name in names}
    driving = baselines.floored(under[config.reward.scheme], config.baseline.use)
    centre = partial(
        advantages,
        kind=config.objective.advantage,
        divide_by_std=config.objective.advantage_std,
        std_floor=config.objective.advantage_std_floor,
    )
    advantage = baselines.used(driving, empty, config.baseline.use, centre)
    return Judgement(under, driving, advantage)


def _baseline(current_PH: Tensor, reference_PH: Tensor | None, config: Config) -> Tensor:
    """No-think log-probs that rewards may subtract, [P, H]."""
    if config.baseline.weights == "none":
        return torch.zeros_like(current_PH)
    if config.baseline.weights == "current":
        return current_PH
    assert reference_PH is not None
    return reference_PH


def _noise(rollouts: Sequence[Rollout], group: int, seed: int) -> Tensor:
    """A draw for every thought, float64 [P, G]: a function of the seed and of which one it is."""
    ordinal = [r.context.ordinal for r in rollouts for _ in r.positions]
    position = [p for r in rollouts for p in r.positions]
    at_2P = torch.tensor([ordinal, position], dtype=torch.int64)
    return uniform(seed, "reward", at_2P[0, :, None], at_2P[1, :, None], torch.arange(group))


def loss(
    scores: Scores,
    tree: ThoughtTree,
    advantage_PG: Tensor,
    counts: Counts,
    config: Config,
    old_logp_M: Tensor | None = None,
) -> Loss:
    """This microbatch's share of the step's loss; the shares of a step add up to it.

    old_logp_M: log-probs of the policy that the first epoch saw; None on that epoch itself, where
    the ratio is 1 and the clipped objective has the gradient of the plain one.
    """
    objective = config.objective
    index = tree.thought_index.to(advantage_PG.device)
    advantage_M = advantage_PG.flatten()[index]
    clipped = torch.zeros((), device=advantage_PG.device)
    if objective.algorithm == "clipped_ratio":
        old = scores.thought_logp_M if old_logp_M is None else old_logp_M
        pg, clipped = losses.clipped_ratio(
            scores.thought_logp_M,
            old,
            advantage_M,
            low=objective.clip_low,
            high=objective.clip_high,
        )
    else:
        pg = losses.policy_gradient(scores.thought_logp_M, advantage_M)
    # Without thoughts both sums are empty, and so is what they would be divided by.
    pg = pg / max(counts.thought, 1)
    continuation = losses.negative_log_likelihood(scores.think_logp_PGH)
    continuation = continuation / max(counts.continuation, 1)
    total = objective.pg_weight * pg + objective.continuation_weight * continuation
    ntp = torch.zeros_like(pg)
    if scores.context_logp is not None:
        ntp = losses.negative_log_likelihood(scores.context_logp) / counts.context
        total = total + objective.ntp_weight * ntp
    return Loss(total, pg.detach(), continuation.detach(), ntp.detach(), clipped)
