"""What makes two configs the same run: the fields that decide what is trained, and their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rntp.config.choice import Choice

if TYPE_CHECKING:
    from rntp.config.schema import Config

# What no update depends on: whole sections, and fields of the others.
_NOT_TRAINED = {"checkpoint", "log", "parallel", "rollout", "evaluation"}
_FREE = {
    "run": ("name", "dir", "steps", "timeouts_s", "on_trouble"),
    "model": ("device", "sharing"),
    "data": ("source", "workers"),
    "reward": ("shadows",),
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
    for section, field, choice in _choices(config):
        if field in facts.get(section, {}):
            facts[section][field] = {choice: choice.full()}
    facts["reward"]["scheme"] = {
        name: {"weight": weight, **config.reward.parameters(name)}
        for name, weight in config.reward.weights.items()
    }
    if config.data.has_tasks:
        for name, weight in config.reward.weights_on_tasks.items():
            facts["reward"]["scheme"][name]["on_tasks"] = weight
    _put_where_it_stood(facts)
    _leave_out_unread(facts, config)
    # A manifest's digest is a corpus' identity, not its path.
    if isinstance(config.data.source, dict):
        facts["data"]["weights"] = list(config.data.source.values())
    # The evaluation's positions, too, need room in a document.
    facts["data"]["min_document_tokens"] = config.min_document_tokens
    if config.optim.schedule == "cosine":
        facts["optim"]["steps"] = config.run.steps
    return facts


def _put_where_it_stood(facts: dict[str, Any]) -> None:
    """Move, in place, what has another place by now back to where it was: a run that began before
    goes on."""
    facts["model"]["think_open"], facts["model"]["think_close"] = facts["model"].pop("markers")
    facts["reward"]["judge"] = facts["reward"]["judges"].pop("itself")
    facts["optim"] |= facts["optim"].pop("adamw")


def _leave_out_unread(facts: dict[str, Any], config: Config) -> None:
    """Take away, in place, what nothing reads as the other fields are set."""
    reading = facts["reading"]
    if config.reading.window is None:
        del reading["window"]
    if config.reading.piece is None:
        del reading["piece"]
    if not config.reading.mixing:
        del reading["mixing"]
    if not reading:
        del facts["reading"]
    if not config.thought.tools.use:
        del facts["thought"]["tools"]
    else:
        del facts["thought"]["tools"]["workers"]
    if not config.data.has_tasks:
        del facts["data"]["tasks"]
    judges = facts["reward"].pop("judges")
    if "judge" in config.reward.weights:  # wherever a model is served, and however it is asked
        models = {name: judge["model"] for name, judge in judges["use"].items()}
        deciding = ("sees", "verdict", "combine", "rule")
        facts["reward"]["judges"] = {"use": models, **{name: judges[name] for name in deciding}}
    net_gain = facts["reward"]["scheme"].get("net_gain", {})
    if net_gain.get("call_cost") == 0:
        del net_gain["call_cost"]
    if "call_cost" not in net_gain or net_gain["call_cost_after"] == 0:
        net_gain.pop("call_cost_after", None)
    others: dict[str, Any] = {}
    if config.rollout.samplers.max_age:  # else samplers change nothing
        others["max_age"] = config.rollout.samplers.max_age
    if config.rollout.engine != "inprocess":  # another engine draws other thoughts
        others["engine"] = str(config.rollout.engine)
    if others:
        facts["rollout"] = others
    objective = facts["objective"]
    _name_correction(objective["algorithm"][config.objective.algorithm], config)
    if config.objective.router_weight == 0:
        del objective["router_weight"]
    if config.objective.kl_weight == 0:
        del objective["kl"]
    elif config.objective.kl.get("reference") != "ema":
        del objective["kl"][config.objective.kl]["decay"]


def _name_correction(algorithm: dict[str, Any], config: Config) -> None:
    """Put in place what stands for null, and leave out, in place, what is off."""
    correction = config.correction
    algorithm["importance_cap"] = correction.cap
    algorithm["importance_mask"] = list(correction.mask)
    if correction.mask == (0.0, 0.0):
        del algorithm["importance_mask"]
        if correction.cap == 0 or correction.of == "token":
            del algorithm["importance_of"]


def _choices(config: Config) -> Iterator[tuple[str, str, Choice]]:
    """(section, field, what is chosen there) of every choice with parameters."""
    for section, part in config:
        for field, value in part:
            if isinstance(value, Choice):
                yield section, field, value


def measured(config: Config) -> dict[str, Any]:
    """List the fields that decide what is measured of what is trained, and by which schemes."""
    facts = config.model_dump(mode="json", include={"evaluation", "reward"})
    del facts["evaluation"]["every_steps"]
    facts["evaluation"]["docs"] = config.evaluation.heldout_docs
    facts["evaluation"]["reused_docs"] = config.evaluation.reused_docs
    facts["evaluation"]["placement"] = str(config.evaluation.placement)
    facts["evaluation"]["positions_per_doc"] = config.evaluation.positions_per_doc
    # A constant now; results of runs that had the field are made alike.
    facts["evaluation"]["bits_per_thought_token"] = 0.01
    # As with the training corpus; a result names its digest.
    facts["evaluation"]["source"] = config.evaluation.source is not None
    if config.reading.window is not None:
        facts["evaluation"]["window"] = config.reading.window
    if config.reading.piece is not None:
        facts["evaluation"]["piece"] = config.reading.piece
    if config.reading.mixing:
        facts["evaluation"]["mixing"] = True
    return {
        "evaluation": facts["evaluation"],
        "reward": {"shadows": facts["reward"]["shadows"]},
    }


def digest(facts: dict[str, Any]) -> str:
    """Hash facts, whatever their order: SHA-256, hexadecimal."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
