"""What makes two configs the same run: the fields that decide what is trained, and their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rntp.config.schema import Config

# What no update depends on: whole sections, and fields of the others.
_NOT_TRAINED = {"checkpoint", "log", "parallel", "rollout", "evaluation"}
_FREE = {
    "run": ("name", "dir", "steps", "hang_timeout_s", "max_rollbacks", "stop_on_alarm"),
    "model": ("device", "sharing"),
    "data": ("source", "max_damaged", "workers", "worker_kind", "deadline_s"),
    "reward": ("shadows",),
}
# Fields that only some settings of others read.
_CONDITIONAL: dict[tuple[str, str], Callable[[Config], bool]] = {
    ("reward", "token_cost"): lambda c: "net_gain" in c.reward.weights,
    ("reward", "token_cost_after"): lambda c: "net_gain" in c.reward.weights,
    ("reward", "length_budget"): lambda c: "length_triangle" in c.reward.weights,
    ("reward", "length_half_life"): lambda c: "length_triangle" in c.reward.weights,
    ("baseline", "decay"): lambda c: c.reference_weights == "ema",
    ("objective", "router_weight"): lambda c: c.objective.router_weight > 0,
    ("optim", "min_lr_fraction"): lambda c: c.optim.schedule == "cosine",
    ("objective", "kl_estimator"): lambda c: c.objective.kl_weight > 0,
    ("objective", "kl_in"): lambda c: c.objective.kl_weight > 0,
    ("objective", "kl_reference"): lambda c: c.objective.kl_weight > 0,
    ("objective", "clip_low"): lambda c: c.objective.algorithm != "policy_gradient",
    ("objective", "clip_high"): lambda c: c.objective.algorithm != "policy_gradient",
}


def trained(config: Config) -> dict[str, Any]:
    """List the fields that decide what is trained.

    Left out is what may change between two starts of one run without changing an update: where
    it lies, how long it goes on, on which device, what it measures and only logs, and how it
    saves and cuts its work; and fields that nothing reads as the others are set.
    """
    facts = config.model_dump(mode="json", exclude=_NOT_TRAINED)
    for section, names in _FREE.items():
        for name in names:
            del facts[section][name]
    for (section, name), reaches in _CONDITIONAL.items():
        if not reaches(config):
            del facts[section][name]
    # A manifest's digest is a corpus' identity, not its path.
    if isinstance(config.data.source, dict):
        facts["data"]["weights"] = list(config.data.source.values())
    # The evaluation's positions, too, need room in a document.
    facts["data"]["min_document_tokens"] = config.min_document_tokens
    if config.optim.schedule == "cosine":
        facts["optim"]["steps"] = config.run.steps
    return facts


def measured(config: Config) -> dict[str, Any]:
    """List the fields that decide what is measured of what is trained, and by which schemes."""
    facts = config.model_dump(mode="json", include={"evaluation", "reward"})
    for name in ("every_steps", "enabled"):
        del facts["evaluation"][name]
    # As with the training corpus; a result names its digest.
    facts["evaluation"]["source"] = config.evaluation.source is not None
    return {
        "evaluation": facts["evaluation"],
        "reward": {"shadows": facts["reward"]["shadows"]},
    }


def digest(facts: dict[str, Any]) -> str:
    """Hash facts, whatever their order: SHA-256, hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
