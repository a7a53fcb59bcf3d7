"""From log-probs to rewards under every scheme, and to the advantages of those that drive."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.model.thought_tree import ThoughtTree
from rntp.objective import baselines, losses
from rntp.objective.credit import credit
from rntp.objective.outside import missing_verdicts
from rntp.objective.quantities import ForwardOutputs, RewardsAndAdvantages
from rntp.objective.reward_inputs import gather
from rntp.objective.rounding import Rounding, sensitivity, tolerance
from rntp.placement.repeats import group_of_rows
from rntp.types import RewardInputs, Rollout, no_text


def compute_rewards(
    outputs: ForwardOutputs,
    tree: ThoughtTree,
    rollouts: Sequence[Rollout],
    config: Config,
    reference_no_think_PH: Tensor | None = None,
    reference_logp_M: Tensor | None = None,
    *,
    decode: Callable[[Tensor], str] = no_text,
    verdicts: Mapping[str, Tensor] | None = None,
) -> RewardsAndAdvantages:
    """Rewards of every scheme on the same thoughts, and the advantages of those that drive.

    reference_no_think_PH: the continuation without a thought under `baseline.weights`, where those
    are not the weights of this forward; reference_logp_M: the sampled tokens under the weights that
    `objective.kl` keeps them close to. See `rntp.objective.reference_model`. decode: text of
    ids, where a scheme compares texts. verdicts: see `rntp.objective.judge_model`. Where
    `objective.needs_whole_step`, `advantages_over_step` has to follow.
    """
    empty = _baseline(outputs.no_think_logp_PH, reference_no_think_PH, config)
    if tree.scored_PH is not None:
        empty = torch.where(tree.scored_PH.to(empty.device), empty, 0)
    inputs = gather(
        rollouts,
        config,
        logp_think_PGH=outputs.think_logp_PGH,
        logp_no_think_PH=empty,
        match_PGH=outputs.match_PGH,
        continuation_ids_PH=tree.continuation_PH,
        collision_PGH=outputs.collision_PGH,
        decode=decode,
        verdicts=verdicts or {},
        scored_PH=tree.scored_PH,
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
        return _weighted(under | again, config, on_tasks)

    on_tasks = tasks_P(rollouts, outputs.think_logp_PGH.device)
    reward = driving = _weighted(under, config, on_tasks)
    if config.objective.kl_weight > 0 and config.objective.kl.get("in") == "reward":
        assert reference_logp_M is not None
        driving = reward - config.objective.kl_weight * losses.kl_per_thought(
            outputs.thought_logp_M.detach(),
            reference_logp_M,
            tree.thought_index.to(reward.device),
            cast(losses.Estimator, config.objective.kl),
            thoughts=reward.numel(),
        ).view(reward.shape)
    missing_PG = missing_verdicts(verdicts or {}, config)
    group_P = group_of_rows(r.positions for r in rollouts)
    advantage_PG, counted_P = credit(driving, empty, config, missing_PG=missing_PG, group_P=group_P)
    sampled = sampler_logp(rollouts)
    rounding = Rounding.usual(config.model.dtype, len(sampled))
    if config.rollout.samplers.max_age == 0:
        rounding = Rounding.between(outputs.thought_logp_M, sampled)
    return RewardsAndAdvantages(
        rewards=under,
        reward_PG=reward,
        driving_PG=driving,
        no_think_logp_PH=empty,
        advantage_PG=advantage_PG,
        counted_P=counted_P,
        group_P=group_P,
        sensitivity_P=sensitivity(inputs, from_logprobs, missing_PG),
        rounding=rounding,
        right_PG=None if on_tasks is None else inputs.right_PG,
    )


def sampler_logp(rollouts: Sequence[Rollout]) -> Tensor:
    """Log-probs of the sampled tokens when they were drawn, nats, [M] in the order of the tree."""
    thoughts = [t for r in rollouts for group in r.thoughts for t in group]
    return torch.cat([torch.empty(0), *(t.drawn_logprobs for t in thoughts)])


def advantages_over_step(
    rewarded_parts: Sequence[RewardsAndAdvantages], config: Config, usual_std: float = 0.0
) -> list[RewardsAndAdvantages]:
    """The microbatches of a whole step again, with advantages that know all of its rewards.

    usual_std: what groups are measured by; see `rntp.objective.credit`.
    """
    driving_PG = torch.cat([j.driving_PG for j in rewarded_parts])
    advantage, counted = credit(
        driving_PG,
        torch.cat([j.no_think_logp_PH for j in rewarded_parts]),
        config,
        usual_std,
        tolerance(
            torch.cat([j.sensitivity_P for j in rewarded_parts]),
            Rounding.total([j.rounding for j in rewarded_parts]),
        ),
        missing_verdicts({"outside": driving_PG}, config),
        _numbered([j.group_P for j in rewarded_parts]),
    )
    sizes = [len(j.reward_PG) for j in rewarded_parts]
    return [
        replace(rewarded, advantage_PG=own_PG, counted_P=own_P)
        for rewarded, own_PG, own_P in zip(
            rewarded_parts, advantage.split(sizes), counted.split(sizes), strict=True
        )
    ]


def _numbered(parts: Sequence[Tensor]) -> Tensor:
    """The groups of several parts, int64 [P], no two of different parts with one number."""
    found, next_free = [], 0
    for group_P in parts:
        found.append(group_P + next_free)
        next_free = int(found[-1].max()) + 1 if len(group_P) else next_free
    return torch.cat(found)


def _baseline(current_PH: Tensor, reference_PH: Tensor | None, config: Config) -> Tensor:
    """No-think log-probs that rewards may subtract, [P, H]."""
    if config.baseline.weights == "none":
        return torch.zeros_like(current_PH)
    if config.baseline.weights == "current":
        return current_PH
    assert reference_PH is not None
    return reference_PH


def tasks_P(rollouts: Sequence[Rollout], device: torch.device) -> Tensor | None:
    """Tell which positions are of tasks, bool [P]; None where none is."""
    are = [r.context.task is not None for r in rollouts for _ in r.positions]
    return torch.tensor(are, device=device) if any(are) else None


def _weighted(under: dict[str, Tensor], config: Config, on_tasks: Tensor | None) -> Tensor:
    """The weighted sum of the schemes that drive, [P, G]. on_tasks: positions that have weights of
    their own, bool [P].

    The floor of `baseline.use: clip` is of each scheme that compares with no thought, before it is
    added to the others (RLPR, 2506.18254).
    """
    parts = []
    for name, weight in config.reward.weights.items():
        compares = rewards.BASELINES[name] != "ignores"
        use = config.baseline.use if compares else "subtract"
        weight_P1: float | Tensor = weight
        if on_tasks is not None:
            weight_P1 = torch.where(on_tasks, config.reward.weights_on_tasks[name], weight)[:, None]
        parts.append(weight_P1 * baselines.floored(under[name], use))
    return torch.stack(parts).sum(dim=0)
