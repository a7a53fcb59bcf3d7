"""What is told of a config at start: allowed, and probably not meant. A table as RULES is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rntp.config.rules import Rule, in_group

if TYPE_CHECKING:
    from rntp.config.schema import Config

# Schemes that are no plain differences to the baseline, so that there it does not cancel.
_BENT = {"weighted_log_ratio", "weighted_prob", "positive_gain", "ppl_steps"}


def _baseline_cancels(config: Config) -> bool:
    """Whether the update does not depend on what rewards subtract."""
    return (
        config.objective.pg_weight > 0
        and config.baseline.use == "subtract"
        and not _BENT & set(config.reward.weights)
        and in_group(config)
        and config.objective.continuation_use != "reward"
    )


WARNINGS = (
    Rule(
        ("baseline.weights", "baseline.use"),
        lambda c: c.baseline.rereads and c.objective.kl_weight == 0 and _baseline_cancels(c),
        "baseline.weights: {baseline.weights} keeps a copy of the weights and runs a second "
        "forward, and with baseline.use: subtract only the logged reward knows",
    ),
    Rule(
        ("objective.algorithm", "objective.epochs_per_rollout"),
        lambda c: (
            c.objective.algorithm != "policy_gradient"
            and c.objective.epochs_per_rollout == 1
            and c.rollout.samplers.max_age == 0
            and c.rollout.engine == "inprocess"
        ),
        "objective.algorithm: {objective.algorithm} has the gradient of policy_gradient as long as "
        "objective.epochs_per_rollout is 1",
    ),
    Rule(
        ("objective.algorithm", "rollout.engine"),
        lambda c: (
            (c.objective.algorithm.get("importance_cap") or 0) > 0
            and c.rollout.samplers.max_age == 0
            and c.rollout.engine == "inprocess"
        ),
        "importance_cap: rollout.engine: {rollout.engine} samples with the trainer's own "
        "weights, so that every ratio is 1 up to rounding",
    ),
    Rule(
        ("objective.kl",),
        lambda c: (
            c.objective.kl_weight > 0
            and (c.objective.kl.get("in"), c.objective.kl) == ("loss", "k1")
        ),
        "objective.kl: k1 has an expected gradient of 0 in the loss; k2 has the divergence's own",
    ),
    Rule(
        ("objective.continuation_weight", "objective.ntp_weight"),
        lambda c: c.objective.continuation_weight == 0 and c.objective.ntp_weight == 0,
        "objective.continuation_weight and objective.ntp_weight are both 0: the model is never "
        "taught to read on after a thought, and base models drift",
    ),
)
