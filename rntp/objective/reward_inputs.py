"""What the rewards of a microbatch are computed from, put together in one place."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from rntp.config import Config
from rntp.objective.grading import right
from rntp.placement.repeats import members
from rntp.rng import uniform
from rntp.types import RewardInputs, Rollout


def gather(
    rollouts: Sequence[Rollout],
    config: Config,
    *,
    logp_think_PGH: Tensor,
    logp_no_think_PH: Tensor,
    match_PGH: Tensor,
    continuation_ids_PH: Tensor,
    collision_PGH: Tensor | None,
    decode: Callable[[Tensor], str],
    verdicts: Mapping[str, Tensor],
    scored_PH: Tensor | None = None,
) -> RewardInputs:
    """The inputs of every scheme, detached; see `RewardInputs`."""
    device, shape = logp_think_PGH.device, logp_think_PGH.shape[:2]
    thoughts = [group for r in rollouts for group in r.thoughts]
    section = config.reward
    net_gain = section.parameters("net_gain")
    of_token, of_call = (
        partial(price, net_gain[name], int(net_gain[f"{name}_after"]))
        for name in ("token_cost", "call_cost")
    )
    start = (
        int(section.parameters("length_triangle")["length_budget"])
        or config.thought.thought_tokens // 2
    )
    budget = partial(
        length_budget, start, int(section.parameters("length_triangle")["length_half_life"])
    )
    return RewardInputs(
        logp_think_PGH=logp_think_PGH.detach(),
        logp_no_think_PH=logp_no_think_PH.detach(),
        has_baseline=config.baseline.weights != "none",
        match_PGH=match_PGH,
        num_tokens_PG=torch.tensor(
            [[t.num_tokens for t in g] for g in thoughts], device=device
        ).view(shape),
        closed_PG=torch.tensor(
            [[t.closed for t in g] for g in thoughts], dtype=torch.bool, device=device
        ).view(shape),
        continuation_ids_PH=continuation_ids_PH,
        thought_ids=[[t.content for t in g] for g in thoughts],
        noise_PG=_noise(rollouts, shape[1], config.run.seed).to(device),
        discount=config.reward.discount,
        token_cost_P=_by_position(rollouts, of_token).to(device),
        num_calls_PG=torch.tensor(
            [[len(t.calls) for t in g] for g in thoughts], device=device
        ).view(shape),
        call_cost_P=_by_position(rollouts, of_call).to(device),
        length_budget_P=_by_position(rollouts, budget).to(device),
        answer_ids=[[t.answer for t in g] for g in thoughts],
        collision_PGH=torch.zeros(1) if collision_PGH is None else collision_PGH,
        true_ids=[_truth(r, p) for r in rollouts for p in r.positions],
        decode=decode,
        verdicts=verdicts,
        scored_PH=None if scored_PH is None else scored_PH.to(device),
        right_PG=right(rollouts, decode).to(device).view(shape),
    )


def _truth(rollout: Rollout, position: int) -> Tensor:
    """The true text from a position on, without the end token of a task's answer."""
    context = rollout.context
    ended = context.task.ended if context.task else False
    return context.token_ids[position : context.num_text - ended]


def length_budget(start: int, half_life: int, updates: int) -> int:
    """B = max(1, ⌊B_0 · 2^(−updates / half_life)⌋) tokens (RMT, 2509.24375).

    half_life: updates; 0 keeps the budget.
    """
    shrunk = start * 2 ** (-updates / half_life) if half_life else start
    return max(1, math.floor(shrunk))


def price(cost: float, after: int, updates: int) -> float:
    """Nats that a token or a call costs a policy with so many updates behind it: none before
    `after`."""
    return cost if updates >= after else 0.0


def _by_position(rollouts: Sequence[Rollout], of: Callable[[int], float]) -> Tensor:
    """float32 [P]: a function of the updates of the policy that sampled there."""
    values = [of(r.policy_version) for r in rollouts for _ in r.positions]
    return torch.tensor(values, dtype=torch.float32)


def _noise(rollouts: Sequence[Rollout], group: int, seed: int) -> Tensor:
    """A draw for every thought, float64 [P, G]: a function of the seed and of which one it is."""
    ordinal = [r.context.ordinal for r in rollouts for _ in r.positions]
    position = [p for r in rollouts for p in r.page_positions]
    at_2P = torch.tensor([ordinal, position], dtype=torch.int64)
    member_PG = members((r.positions for r in rollouts), group)
    return uniform(seed, "reward", at_2P[0, :, None], at_2P[1, :, None], member_PG)
