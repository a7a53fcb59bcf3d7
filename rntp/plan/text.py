"""A plan for people: its facts by part, and what to mind."""

from collections.abc import Iterator, Mapping
from typing import Any

from rntp.plan.budget import Plan, fails_s, tokens_of
from rntp.runtime.memory import size
from rntp.show import columns
from rntp.training.estimate import (
    Tokens,
    attention_flop,
    checkpoint_bytes,
    flop_parts,
    record_bytes,
)

LARGEST_TEXT = 15e12
"""Tokens of FineWeb (2406.17557), about what Common Crawl leaves of English."""


def facts(plan: Plan) -> dict[str, Any]:
    """Return all of a plan as numbers with names, for JSON: s, bytes, FLOP, dollars."""
    config, shape, step = plan.config, plan.shape, plan.step
    flop = dict(flop_parts(config, shape, Tokens.of(config)))
    for name, more in attention_flop(config, shape).items():
        flop[name] = flop.get(name, 0.0) + more
    out, steps = plan.simulated, config.run.steps
    found: dict[str, Any] = {
        "model": {"parameters": shape.parameters, "recompute": plan.recompute},
        "cluster": {
            "name": plan.cluster.name,
            "devices": plan.cluster.devices,
            "that train": plan.ranks,
            "that sample": plan.sampling.samplers if plan.sampling else 0,
        },
        "rates": plan.rates.source,
        "steps": steps,
        "tokens": tokens_of(config),
        "flop of the run": step.flop * steps,
        "flop of a step": {name: n for name, n in flop.items() if n},
        "memory of a rank": {name: n for name, n in step.memory.items() if n},
        "bytes of a step": plan.links(),
        "seconds of a step": {
            phase: {name: n for name, n in parts.items() if n}
            for phase, parts in step.seconds.items()
        },
        "step_s": plan.step_s,
        "mfu": plan.utilisation(),
        "disk": {
            "a checkpoint": checkpoint_bytes(config, shape.parameters),
            "thoughts": record_bytes(config),
            "all": plan.disk_bytes,
        },
        "checkpoints": {
            "stall_s": plan.save_s,
            "every": config.checkpoint.every_steps,
            "best interval, steps": plan.best_interval,
            "between failures, s": fails_s(plan.cluster, plan.devices),
        },
        "simulated": {
            "steps": plan.simulated_steps,
            "goodput": out.goodput,
            "waiting": out.waiting_s / out.wall_s,
            "saving": out.saving_s / out.wall_s,
            "done again": out.again_s / out.wall_s,
            "restarting": out.restarting_s / out.wall_s,
            "failures": out.failures,
            "mean age": out.mean_age,
            "most age": max(out.ages, default=0),
        },
        "hours": plan.hours,
        "dollars": plan.dollars,
    }
    if plan.sampling:
        found["sampling"] = {
            "samplers": plan.sampling.samplers,
            "a share of a step, s": plan.sampling.wave_s,
            "weights arrive, s": plan.sampling.pull_s,
            "thoughts arrive, s": plan.sampling.put_s,
            "age": plan.sampling.age,
            "trainer waits": plan.sampling.trainer_waits,
        }
    return found


def warnings(plan: Plan) -> Iterator[str]:
    """Say where a part of the plan dominates or does not fit, and what helps."""
    cluster, config, step = plan.cluster, plan.config, plan.step
    room, needed = cluster.device.memory_gb * 1e9, sum(step.memory.values())
    if needed > room:
        large = max(step.memory, key=lambda name: step.memory[name])
        yield (
            f"DOES NOT FIT: a rank takes {size(needed)} and a device has {size(room)}; most is "
            f"{large} ({size(step.memory[large])}). Every rank keeps a whole copy of the weights "
            "and of the summed gradient: rntp has no tensor or pipeline parallelism"
        )
    idle = cluster.devices - plan.devices
    if idle > 0:
        yield (
            f"{idle} of {cluster.devices} devices have nothing to do: data.docs_per_step "
            f"{config.data.docs_per_step} gives work to {plan.ranks} ranks; raise it"
        )
    if plan.simulated.steps < plan.simulated_steps:
        yield (
            f"DOES NOT END: a device fails every {fails_s(cluster, plan.devices) / 3600:.3g} h, "
            f"and {config.checkpoint.every_steps} steps between checkpoints take "
            f"{config.checkpoint.every_steps * plan.step_s / 3600:.3g} h; lower "
            "checkpoint.every_steps"
        )
    yield from _of_time(plan)
    if tokens_of(config)["of text"] > LARGEST_TEXT:
        yield (
            f"{tokens_of(config)['of text']:.2g} tokens of text are read, more than the "
            f"{LARGEST_TEXT:.2g} of FineWeb: pages would be read again"
        )
    if record_bytes(config) > 10 * checkpoint_bytes(config, plan.shape.parameters):
        yield (
            f"the thoughts of all steps take {size(record_bytes(config))}; set "
            "log.rollouts_per_step to a few hundred"
        )
    every = config.checkpoint.every_steps
    if not 1 / 3 < every / max(plan.best_interval, 1.0) < 3:
        yield (
            f"checkpoint.every_steps is {every}; {max(1, round(plan.best_interval))} loses least "
            f"to saves ({plan.save_s:.3g} s) and failures (every "
            f"{fails_s(cluster, plan.devices) / 3600:.3g} h)"
        )
    if plan.rates.source.startswith("assumed"):
        yield "times are assumed from a data sheet; measure them with --calibrate on this machine"


def _of_time(plan: Plan) -> Iterator[str]:
    """Parts of a step that take more than their share."""
    costs: dict[str, float] = {}
    for phase, parts in plan.step.seconds.items():
        if plan.sampling and phase == "rollout":
            continue
        for name, seconds in parts.items():
            costs[name] = costs.get(name, 0.0) + seconds
    total = sum(costs.values())
    for names, most, said in (
        (
            ("gathered_bytes", "reduced_bytes"),
            0.2,
            "weights and gradients travel for {share} of a step: more documents a step, or faster "
            "links",
        ),
        (
            ("hops",),
            0.1,
            "{share} of a step is messages that go round all ranks one after the other; fewer, "
            "larger ranks would have fewer",
        ),
        (
            ("launches", "decode_launches", "once"),
            0.3,
            "{share} of a step waits for the program to start operations: more documents a rank "
            "and step, larger parallel.tokens_per_microbatch and rollout.docs_per_batch",
        ),
        (
            ("thoughts", "exchanged_bytes"),
            0.1,
            "{share} of a step is records: lower log.rollouts_per_step",
        ),
        (
            ("decode_bytes", "decode_flop"),
            0.5,
            "{share} of a step is decoding: samplers beside the trainer (--age), more documents in "
            "rollout.docs_per_batch, or a smaller thought.thought_tokens",
        ),
    ):
        share = sum(costs.get(name, 0.0) for name in names) / total
        if share > most:
            yield said.format(share=f"{share:.0%}")
    if plan.sampling and plan.sampling.trainer_waits > 0.05:
        yield (
            f"the trainer waits {plan.sampling.trainer_waits:.0%} of its time for thoughts; raise "
            "--samplers"
        )


def text(plan: Plan) -> str:
    """Lay a plan out for people."""
    found = facts(plan)
    config, step, out = plan.config, plan.step, plan.simulated
    sampled = f", {found['cluster']['that sample']} sample" if plan.sampling else ""
    lines = [
        f"{config.model.spec}, {plan.shape.parameters / 1e9:.3g} B parameters, on "
        f"{plan.cluster.name}: {plan.ranks} of {plan.cluster.devices} devices train{sampled}; "
        f"{config.run.steps:,} steps",
        f"times: {plan.rates.source}",
        "",
        _parts("tokens of the run", found["tokens"], _short),
        "",
        _parts("FLOP of a step", found["flop of a step"], _short),
        "",
        _parts("memory of a rank", found["memory of a rank"], size),
        "",
    ]
    if found["bytes of a step"]:
        lines += [_parts("bytes of a step", found["bytes of a step"], size, total=False), ""]
    lines += [_time(plan), ""]
    recomputed = ", layers run again in the backward" if plan.recompute else ""
    lines += [
        f"a step {plan.step_s:.3g} s, {plan.utilisation():.1%} of the devices' FLOP/s{recomputed}",
        f"the run {_short(step.flop * config.run.steps)} FLOP, {plan.hours:.3g} hours "
        f"({plan.hours / 24:.3g} days), {plan.dollars:,.0f} dollars, disk {size(plan.disk_bytes)}",
        f"simulated, {plan.simulated_steps} steps: {out.goodput:.1%} of the time are steps that "
        f"count; waiting for thoughts {out.waiting_s / out.wall_s:.1%}, saving "
        f"{out.saving_s / out.wall_s:.1%}, done again {out.again_s / out.wall_s:.1%}, restarting "
        f"{out.restarting_s / out.wall_s:.1%} ({out.failures} failures)",
    ]
    if plan.sampling:
        own = plan.sampling
        lines.append(
            f"samplers: {own.samplers}, each draws its share of a step in {own.wave_s:.3g} s, "
            f"weights arrive in {own.pull_s:.3g} s; age of thoughts {own.age:.0f} updates, "
            f"simulated {out.mean_age:.2f} on average, {max(out.ages, default=0)} at most"
        )
    return "\n".join(lines + [f"! {line}" for line in warnings(plan)])


def _time(plan: Plan) -> str:
    rows = [["seconds of a step", "", "share"]]
    total = plan.step.total_s
    for phase, parts in plan.step.seconds.items():
        for name, seconds in parts.items():
            if seconds > 0.005 * total:
                rows.append([f"{phase}: {name}", f"{seconds:.3g}", f"{seconds / total:.0%}"])
    return columns([*rows, ["all", f"{total:.3g}", "100%"]])


def _parts(title: str, parts: Mapping[str, float], write: Any, *, total: bool = True) -> str:
    whole = sum(parts.values())
    rows = [[title, "", "share"] if total else [title, ""]]
    for name, amount in parts.items():
        share = [f"{amount / whole:.0%}"] if total else []
        rows.append([name, write(amount), *share])
    if total:
        rows.append(["all", write(whole), "100%"])
    return columns(rows)


def _short(amount: float) -> str:
    return f"{amount:.3g}"
