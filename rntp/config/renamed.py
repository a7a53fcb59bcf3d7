"""Fields of older configs, moved to where they stand now: accepted for one version, and told."""

from collections.abc import Callable
from functools import partial
from typing import Any

Raw = dict[str, Any]
UNTIL = "0.3"


def move_renamed(raw: Raw) -> list[str]:
    """Move the old fields of a config, in place. Returns a line for each, for people.

    raw: sections by name, fields by name. What is given under the new name, too, stays as it is
    there.
    """
    told = []
    for old, (new, move) in RENAMED.items():
        section, field = old.split(".")
        fields = raw.get(section)
        if isinstance(fields, dict) and field in fields:
            move(raw, fields.pop(field))
            told.append(f"{old} is now {new}; the old name is accepted until version {UNTIL}")
    return told


def _section(raw: Raw, name: str) -> Raw:
    found = raw.setdefault(name, {})
    return found if isinstance(found, dict) else {}


def _parameter(
    name: str, parameter: str, default: str, of: tuple[str, ...] = ()
) -> Callable[[Raw, Any], None]:
    """Move a value to a parameter of the choice in the field of that name.

    default: what is chosen where nothing is. of: the names that read it; with another, nobody read
    the old field either, and it is left out.
    """
    section, field = name.split(".")

    def move(raw: Raw, value: Any) -> None:
        fields = _section(raw, section)
        chosen = fields.get(field, default)
        held = dict(chosen) if isinstance(chosen, dict) else {str(chosen): {}}
        for one in held:
            if (not of or one in of) and isinstance(held[one], dict):
                held[one] = {parameter: value, **held[one]}
        fields[field] = held if any(held.values()) else chosen

    return move


def _scheme(scheme: str, parameter: str) -> Callable[[Raw, Any], None]:
    """Move a value to a parameter of a reward scheme, where that one is named."""

    def move(raw: Raw, value: Any) -> None:
        reward = _section(raw, "reward")
        chosen = reward.get("scheme", "log_ratio")
        held = dict(chosen) if isinstance(chosen, dict) else {str(chosen): 1.0}
        if scheme in held:
            own = held[scheme]
            own = dict(own) if isinstance(own, dict) else {"weight": own}
            reward["scheme"] = {**held, scheme: {**own, parameter: value}}
        elif scheme in (reward.get("shadows") or ()):
            shadows = reward["shadows"]
            named = dict(shadows) if isinstance(shadows, dict) else {name: {} for name in shadows}
            reward["shadows"] = {**named, scheme: {**named[scheme], parameter: value}}

    return move


def _divide_by_std(raw: Raw, value: Any) -> None:
    if value:
        _parameter("objective.advantage", "divide_by_std", "leave_one_out")(raw, True)


def _drop_dead(raw: Raw, value: Any) -> None:
    if value:
        _section(raw, "objective").setdefault("drop_groups_below", 0.0)


def _min_group_std(raw: Raw, value: Any) -> None:
    if value:
        _section(raw, "objective")["drop_groups_below"] = value


def _kl(parameter: str) -> Callable[[Raw, Any], None]:
    def move(raw: Raw, value: Any) -> None:
        objective = _section(raw, "objective")
        chosen = objective.get("kl", {"k3": {}})
        if isinstance(chosen, dict) and len(chosen) == 1:
            ((name, own),) = chosen.items()
            objective["kl"] = {name: {**own, parameter: value}}

    return move


def _kl_estimator(raw: Raw, value: Any) -> None:
    objective = _section(raw, "objective")
    chosen = objective.get("kl", {"k3": {}})
    own = next(iter(chosen.values())) if isinstance(chosen, dict) else {}
    objective["kl"] = {value: own}


def _decay(raw: Raw, value: Any) -> None:
    _parameter("baseline.weights", "decay", "current", ("ema",))(raw, value)
    chosen = _section(raw, "objective").get("kl")
    if isinstance(chosen, dict) and any(own.get("reference") == "ema" for own in chosen.values()):
        _kl("decay")(raw, value)


def _stop_on_alarm(raw: Raw, value: Any) -> None:
    run = _section(raw, "run")
    chosen = run.get("on_trouble", "roll_back")
    own = next(iter(chosen.values())) if isinstance(chosen, dict) else {}
    name = "stop" if value else "roll_back"
    run["on_trouble"] = {name: own} if own else name


def _band(kind: str) -> Callable[[Raw, Any], None]:
    def move(raw: Raw, value: Any) -> None:
        placement = _section(raw, "placement")
        placement["band"] = {kind: value, **(placement.get("band") or {})}

    return move


def _into(section: str, *names: str) -> Callable[[Raw, Any], None]:
    """Move a value to a place within a section: names of it, from the outermost."""

    def move(raw: Raw, value: Any) -> None:
        held = _section(raw, section)
        for name in names[:-1]:
            inner = held.get(name)
            if isinstance(inner, int) and name == "samplers":
                inner = {"start": inner}
            held[name] = dict(inner) if isinstance(inner, dict) else {}
            held = held[name]
        held.setdefault(names[-1], value)

    return move


def _pair(section: str, *names: str, index: int, default: tuple[Any, Any]) -> Callable[..., None]:
    """Move a value to one of the two that stand at a place within a section."""

    def move(raw: Raw, value: Any) -> None:
        held = _section(raw, section)
        for name in names[:-1]:
            held = held.setdefault(name, {})
        pair = list(held.get(names[-1], default))
        pair[index] = value
        held[names[-1]] = pair

    return move


def _leases(raw: Raw, value: Any) -> None:
    for old, new in (("contexts", "contexts"), ("seconds", "lease_s"), ("wait_s", "wait_s")):
        if isinstance(value, dict) and old in value:
            _into("rollout", "samplers", new)(raw, value[old])


def _enabled(raw: Raw, value: Any) -> None:
    if value is False:
        _section(raw, "evaluation")["docs"] = 0


def _reused_docs(raw: Raw, value: Any) -> None:
    evaluation = _section(raw, "evaluation")
    docs = evaluation.get("docs", 16)
    if value and not isinstance(docs, dict):
        evaluation["docs"] = {"heldout": docs, "reused": value}


def _worker_kind(raw: Raw, value: Any) -> None:
    data = _section(raw, "data")
    workers = data.get("workers", 0)
    if value == "process" and isinstance(workers, int) and workers > 0:
        data["workers"] = {"process": workers}


def _gone(raw: Raw, value: Any) -> None:
    """A constant now."""


_beta = partial(_pair, "optim", "adamw", "betas", default=(0.9, 0.95))
_marker = partial(_pair, "model", "markers", default=("<think>", "</think>"))
_RATIO = ("clipped_ratio", "cispo", "gspo")
_TRIANGLE = "reward.scheme: {length_triangle: …}"


# Old name: (where it is told to stand now, how it gets there). In the order in which they move.
def _wandb(raw: Raw, value: Any) -> None:
    if value not in ("off", False):  # YAML reads a bare off as false
        _section(_section(raw, "log"), "mirrors").setdefault("wandb", {"mode": value})


def _wandb_project(raw: Raw, value: Any) -> None:
    mirrors = _section(raw, "log").get("mirrors")
    if isinstance(mirrors, dict) and isinstance(mirrors.get("wandb"), dict):
        mirrors["wandb"].setdefault("project", value)


RENAMED: dict[str, tuple[str, Callable[[Raw, Any], None]]] = {
    "reward.token_cost": (
        "a parameter of reward.scheme: {net_gain: …}",
        _scheme("net_gain", "token_cost"),
    ),
    "reward.token_cost_after": (
        "a parameter of reward.scheme: {net_gain: …}",
        _scheme("net_gain", "token_cost_after"),
    ),
    "reward.length_budget": (
        f"a parameter of {_TRIANGLE}",
        _scheme("length_triangle", "length_budget"),
    ),
    "reward.length_half_life": (
        f"a parameter of {_TRIANGLE}",
        _scheme("length_triangle", "length_half_life"),
    ),
    "placement.ramp_steps": (
        "a parameter of placement.policy: {tiers: …}",
        _parameter("placement.policy", "ramp_steps", "random", ("tiers",)),
    ),
    "placement.entropy_band": ("placement.band: {entropy: …}", _band("entropy")),
    "placement.surprise_band": ("placement.band: {surprise: …}", _band("surprise")),
    "objective.clip_low": (
        "a parameter of objective.algorithm",
        _parameter("objective.algorithm", "clip_low", "policy_gradient", _RATIO),
    ),
    "objective.clip_high": (
        "a parameter of objective.algorithm",
        _parameter("objective.algorithm", "clip_high", "policy_gradient", _RATIO),
    ),
    "objective.importance_cap": (
        "a parameter of objective.algorithm",
        _parameter("objective.algorithm", "importance_cap", "policy_gradient"),
    ),
    "objective.advantage_std": ("objective.advantage: {group_mean: …}", _divide_by_std),
    "objective.advantage_std_floor": (
        "a parameter of objective.advantage: {group_mean: …}",
        _parameter("objective.advantage", "std_floor", "leave_one_out", ("group_mean",)),
    ),
    "objective.drop_dead_groups": ("objective.drop_groups_below: 0", _drop_dead),
    "objective.min_group_std": ("objective.drop_groups_below", _min_group_std),
    "objective.kl_estimator": ("objective.kl: {ESTIMATOR: …}", _kl_estimator),
    "objective.kl_weight": ("a parameter of objective.kl", _kl("weight")),
    "objective.kl_in": ("a parameter of objective.kl", _kl("in")),
    "objective.kl_reference": ("a parameter of objective.kl", _kl("reference")),
    "baseline.decay": ("a parameter of baseline.weights: {ema: …} or of objective.kl", _decay),
    "optim.beta1": ("optim.adamw: {betas: …}", _beta(index=0)),
    "optim.beta2": ("optim.adamw: {betas: …}", _beta(index=1)),
    "optim.betas": ("optim.adamw: {betas: …}", _into("optim", "adamw", "betas")),
    "optim.weight_decay": (
        "optim.adamw: {weight_decay: …}",
        _into("optim", "adamw", "weight_decay"),
    ),
    "model.think_open": ("model.markers, the first", _marker(index=0)),
    "model.think_close": ("model.markers, the second", _marker(index=1)),
    "run.hang_timeout_s": ("run.timeouts_s: {hang: …}", _into("run", "timeouts_s", "hang")),
    "parallel.timeout_s": ("run.timeouts_s: {ranks: …}", _into("run", "timeouts_s", "ranks")),
    "reward.judge": ("reward.judges: {itself: …}", _into("reward", "judges", "itself")),
    "rollout.store": ("rollout.samplers: {store: …}", _into("rollout", "samplers", "store")),
    "rollout.max_age": ("rollout.samplers: {max_age: …}", _into("rollout", "samplers", "max_age")),
    "rollout.leases": ("rollout.samplers: {contexts, lease_s, wait_s}", _leases),
    "evaluation.positions_per_doc": (
        "a parameter of evaluation.placement",
        _parameter("evaluation.placement", "positions_per_doc", "random"),
    ),
    "evaluation.reused_docs": ("evaluation.docs: {heldout: …, reused: …}", _reused_docs),
    "evaluation.enabled": ("evaluation.docs, 0 for false", _enabled),
    "optim.eps": ("a constant, 1e-8", _gone),
    "optim.min_lr_fraction": (
        "a parameter of optim.schedule: {cosine: …}",
        _parameter("optim.schedule", "min_lr_fraction", "constant", ("cosine",)),
    ),
    "run.max_rollbacks": (
        "a parameter of run.on_trouble",
        _parameter("run.on_trouble", "rollbacks", "roll_back"),
    ),
    "optim.max_skipped_steps": (
        "a parameter of run.on_trouble",
        _parameter("run.on_trouble", "skipped_steps", "roll_back"),
    ),
    "run.stop_on_alarm": ("run.on_trouble: stop", _stop_on_alarm),
    "data.max_damaged": (
        "a parameter of run.on_trouble",
        _parameter("run.on_trouble", "damaged", "roll_back"),
    ),
    "data.worker_kind": ("data.workers: {process: N}", _worker_kind),
    "log.wandb": ("log.mirrors: {wandb: …}", _wandb),
    "log.wandb_project": ("log.mirrors: {wandb: {project: …}}", _wandb_project),
    "data.deadline_s": ("a constant, 300 s", _gone),
    "evaluation.bits_per_thought_token": ("a constant, 0.01", _gone),
}
