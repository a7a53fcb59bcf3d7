"""The loss of a step: separately weighted terms, each a sum that is divided once.

No side effects; the gradient is whoever calls backward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from rntp.config import Config
from rntp.model.moe import balancing_loss
from rntp.model.thought_tree import ThoughtTree
from rntp.objective import losses, weighting
from rntp.objective.quantities import (
    Counts,
    ForwardOutputs,
    OtherLogprobs,
    RewardsAndAdvantages,
)


@dataclass(frozen=True)
class Loss:
    """The weighted total (differentiable) and its unweighted terms, each already divided.

    entropy: mean nats of a sampled token, which is subtracted. router: the load-balancing loss of a
    mixture of experts. A term of weight 0 that costs
    something is not computed: ntp, kl and entropy are 0 then.
    """

    total: Tensor
    pg: Tensor
    continuation: Tensor
    ntp: Tensor
    kl: Tensor
    entropy: Tensor
    router: Tensor
    clipped_tokens: Tensor


def loss(
    outputs: ForwardOutputs,
    tree: ThoughtTree,
    rewarded: RewardsAndAdvantages,
    counts: Counts,
    config: Config,
    others: OtherLogprobs,
) -> Loss:
    """This microbatch's share of the step's loss; the shares of a step add up to it."""
    objective, logp_M = config.objective, outputs.thought_logp_M
    index = tree.thought_index.to(logp_M.device)
    weight_M = weighting.token_weights(objective.normalize, index, logp_M.dtype)
    every_token, counted = _denominators(counts, config)

    pg, clipped = _policy_term(logp_M, rewarded, index, weight_M, config, others)
    pg = pg / counted
    share_PG = weighting.continuation_weights(
        objective.continuation_use,
        rewarded.reward_PG,
        rewarded.advantage_PG,
        outputs.think_logp_PGH,
    )
    continuation = losses.negative_log_likelihood(
        outputs.think_logp_PGH, None if share_PG is None else share_PG[:, :, None]
    )
    continuation = continuation / max(counts.continuation, 1)
    if outputs.bare_logp_PH is not None:
        # A window without a memory is read and learnt, too: else the baseline would be of a model
        # that has never seen such a text, and the gain too large.
        bare = losses.negative_log_likelihood(outputs.bare_logp_PH)
        continuation = continuation + bare / max(counts.empty(config), 1)
    total = objective.pg_weight * pg + objective.continuation_weight * continuation
    ntp, kl, entropy = torch.zeros_like(pg), torch.zeros_like(pg), torch.zeros_like(pg)
    if outputs.context_logp is not None:
        ntp = losses.negative_log_likelihood(outputs.context_logp) / counts.context
        total = total + objective.ntp_weight * ntp
    if objective.kl_weight > 0 and objective.kl.get("in") == "loss":
        assert others.reference_logp_M is not None
        kl_M = losses.kl_per_token(
            logp_M, others.reference_logp_M, cast(losses.Estimator, objective.kl)
        )
        kl = (weight_M * kl_M).sum() / every_token
        total = total + objective.kl_weight * kl
    if objective.entropy_weight > 0:
        entropy = (weight_M * outputs.thought_entropy_M).sum() / every_token
        total = total - objective.entropy_weight * entropy
    router = torch.zeros_like(pg)
    if objective.router_weight > 0 and outputs.routing is not None:
        router = balancing_loss(outputs.routing, counts.expert_choices, counts.routed)
        total = total + objective.router_weight * router
    return Loss(
        total=total,
        pg=pg.detach(),
        continuation=continuation.detach(),
        ntp=ntp.detach(),
        kl=kl.detach(),
        entropy=entropy.detach(),
        router=router.detach(),
        clipped_tokens=clipped,
    )


def _denominators(counts: Counts, config: Config) -> tuple[int, int]:
    """Of sums over all sampled tokens, and over those whose groups count."""
    kind, budget = config.objective.normalize, config.budget_tokens
    every = weighting.denominator(
        kind, tokens=counts.thought, thoughts=counts.thoughts, budget=budget
    )
    counted = weighting.denominator(
        kind, tokens=counts.counted_tokens, thoughts=counts.counted_thoughts, budget=budget
    )
    return every, counted


def _policy_term(
    logp_M: Tensor,
    rewarded: RewardsAndAdvantages,
    index: Tensor,
    weight_M: Tensor,
    config: Config,
    others: OtherLogprobs,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the chosen algorithm, and how many tokens its clip touched."""
    objective = config.objective
    advantage_M = rewarded.advantage_PG.flatten()[index] * weight_M
    old = logp_M.detach() if others.old_logp_M is None else others.old_logp_M
    correction = config.correction
    if correction.weighs:
        ratio_M = weighting.ratio_of_sampler(old, others.sampler_logp_M, correction.of, index)
        weight = weighting.correction_weights(ratio_M, correction.cap, correction.mask)
        advantage_M = advantage_M * weight
    if correction.start == "sampler":
        old = others.sampler_logp_M
    if objective.algorithm == "policy_gradient":
        return losses.policy_gradient(logp_M, advantage_M), logp_M.new_zeros(())
    surrogates: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "clipped_ratio": losses.clipped_ratio,
        "cispo": losses.clipped_weight,
        "gspo": partial(losses.clipped_sequence_ratio, thought_index_M=index),
    }
    return surrogates[objective.algorithm](
        logp_M,
        old,
        advantage_M,
        low=objective.algorithm.get("clip_low"),
        high=objective.algorithm.get("clip_high"),
    )
