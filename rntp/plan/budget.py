"""What a whole run takes on a cluster: steps, hours, disk, money, what travels and what fails."""

import math
from dataclasses import dataclass, replace

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.plan.cluster import Cluster
from rntp.plan.predict import Step, memory_bytes, predict
from rntp.plan.rates import Rates
from rntp.plan.samplers import (
    Sampling,
    published_bytes,
    rollout_bytes,
    samplers_for,
    sampling,
)
from rntp.plan.simulate import Outcome, Run, simulate
from rntp.plan.work import Share as StepShare
from rntp.plan.work import amounts
from rntp.training.estimate import (
    Shape,
    Tokens,
    attention_flop,
    checkpoint_bytes,
    full_flop,
    record_bytes,
)

SIMULATED_STEPS = 500


@dataclass(frozen=True)
class Wish:
    """What is asked beside config and cluster. flop: of the whole run, in place of run.steps.
    samplers: devices that only draw; age: of their thoughts at most, updates: where samplers is
    None, so many as that takes. With neither the trainer draws itself."""

    flop: float | None = None
    samplers: int | None = None
    age: int | None = None


@dataclass(frozen=True)
class Plan:
    """A run on a cluster. ranks: devices that train. save_s: training stands still for a save.
    hours: on the clock, failures included by simulation. simulated: of so many steps at most."""

    config: Config
    shape: Shape
    cluster: Cluster
    rates: Rates
    ranks: int
    recompute: bool
    step: Step
    sampling: Sampling | None
    save_s: float
    simulated: Outcome
    simulated_steps: int

    @property
    def step_s(self) -> float:
        """Seconds of a step: without rollouts where samplers draw, but as slow as those are."""
        if self.sampling is None:
            return self.step.total_s
        train = self.step.total_s - self.step.phase_s["rollout"]
        return train / (1 - self.sampling.trainer_waits)

    @property
    def hours(self) -> float:
        """Hours of the whole run, with what saves, failures and waiting add by the simulation."""
        done = max(self.simulated.steps, 1)
        return self.simulated.wall_s / done * self.config.run.steps / 3600

    @property
    def devices(self) -> int:
        """That train and that sample."""
        return self.ranks + (self.sampling.samplers if self.sampling else 0)

    @property
    def dollars(self) -> float:
        """Of devices, disk (while the run lasts), and what passes between data centres."""
        cluster = self.cluster
        rent = self.hours * self.devices * cluster.device.dollars_per_hour
        months = self.hours / 730
        disk = self.disk_bytes / 1e12 * months * cluster.storage.dollars_per_tb_month
        far = self.links().get("out of a data centre", 0.0) * cluster.centres
        price = cluster.links.dollars_per_gb_between_centres
        return rent + disk + far * self.config.run.steps / 1e9 * price

    @property
    def disk_bytes(self) -> float:
        """Bytes of the checkpoints that are kept, one more while it is written, and of thoughts."""
        one = checkpoint_bytes(self.config, self.shape.parameters)
        return one * (self.config.checkpoint.keep + 1) + record_bytes(self.config)

    @property
    def best_interval(self) -> float:
        """Steps between checkpoints that lose least: √(2 · save · time between failures), Young
        (1974), over the seconds of a step."""
        return math.sqrt(2 * self.save_s * fails_s(self.cluster, self.devices)) / self.step_s

    def utilisation(self) -> float:
        """Of the devices that train, or of all where samplers draw: FLOP over what they could."""
        flop_s = self.cluster.device.tflops * 1e12
        return self.step.flop / (self.step_s * self.devices * flop_s)

    def links(self) -> dict[str, float]:
        """Bytes of a step over each kind of link, each way: a ring of all ranks passes all."""
        share = StepShare.of(self.config, self.ranks, recompute=self.recompute)
        found = amounts(share, self.shape)
        ring = (
            found["train"]["reduced_bytes"]
            + found["update"]["gathered_bytes"]
            + found["rest"]["exchanged_bytes"]
        )
        names = ["from a device to the next"] if self.ranks > 1 else []
        if self.ranks > self.cluster.devices_per_node:
            names.append("out of a node")
        if self.cluster.centres > 1:
            names.append("out of a data centre")
        links = dict.fromkeys(names, ring)
        if self.sampling:
            links["weights to each sampler"] = published_bytes(self.config, self.shape)
            links["thoughts from all samplers"] = rollout_bytes(self.config)
        return links


def plan(config: Config, shape: Shape, cluster: Cluster, rates: Rates, wish: Wish) -> Plan:
    """Plan a run. Raises ConfigError for wishes that cannot be met."""
    config = with_flop(config, shape, wish.flop)
    samplers = wish.samplers or 0
    if samplers >= cluster.devices:
        raise ConfigError(
            f"--samplers {samplers}: {cluster.name} has {cluster.devices} devices, and one has to "
            "train; name a larger cluster with --cluster"
        )
    found = None
    if wish.age is not None and wish.samplers is None:
        found = _samplers(config, shape, cluster, rates, wish.age)
        samplers = found.samplers
    ranks = min(cluster.devices - samplers, config.data.docs_per_step)
    recompute = recomputes(config, shape, cluster, rates, ranks)
    step = predict(config, shape, rates, ranks, recompute=recompute)
    if samplers:
        train_s = step.total_s - step.phase_s["rollout"]
        found = sampling(config, shape, rates, samplers, train_s, pull_gb_s(cluster))
    save_s = stall(config, shape, cluster, ranks)
    run = simulated_run(config, cluster, step, found, save_s, wish.age or 1)
    return Plan(
        config,
        shape,
        cluster,
        rates,
        ranks,
        recompute,
        step,
        found,
        save_s,
        simulate(run),
        run.steps,
    )


def with_flop(config: Config, shape: Shape, flop: float | None) -> Config:
    """The same config with as many steps as make so many FLOP, attention included."""
    if flop is None:
        return config
    each = full_flop(config, shape) + sum(attention_flop(config, shape).values())
    steps = max(1, round(flop / each))
    return config.model_copy(update={"run": config.run.model_copy(update={"steps": steps})})


def recomputes(config: Config, shape: Shape, cluster: Cluster, rates: Rates, ranks: int) -> bool:
    """Whether layers keep only their inputs: as the config says, or where memory is too small."""
    asked = config.parallel.activation_checkpointing
    if asked != "auto":
        return asked
    return memory_bytes(config, shape, ranks, rates) > cluster.device.memory_gb * 1e9


def stall(config: Config, shape: Shape, cluster: Cluster, ranks: int) -> float:
    """Seconds that training stands still for a checkpoint: until it is written, or until each rank
    has copied its part."""
    size = checkpoint_bytes(config, shape.parameters)
    if config.checkpoint.asynchronous:
        return size / ranks / (cluster.storage.copy_gb_s * 1e9)
    return size / (cluster.storage.gb_s * 1e9)


def fails_s(cluster: Cluster, devices: int) -> float:
    """Seconds between two failures of any of so many devices."""
    return cluster.failures.device_hours * 3600 / devices


def pull_gb_s(cluster: Cluster) -> float:
    """GB/s at which a sampler takes weights: over the network of nodes; with several data centres a
    copy passes the border of each once, and is handed on inside behind that."""
    inside = cluster.links.between_gb_s
    if cluster.centres > 1:
        inside = 1 / (1 / inside + 1 / cluster.links.between_centres_gb_s)
    return inside * cluster.assumed.link


def simulated_run(
    config: Config,
    cluster: Cluster,
    step: Step,
    found: Sampling | None,
    save_s: float,
    age: int,
) -> Run:
    """What the simulation is told of a run: its first `SIMULATED_STEPS` steps. Stragglers: a tenth
    is the standard deviation of a step's logarithm."""
    devices = step.ranks + (found.samplers if found else 0)
    rollout_s = step.phase_s["rollout"]
    alone = Run(
        steps=min(config.run.steps, SIMULATED_STEPS),
        train_s=step.total_s - rollout_s,
        rollout_s=rollout_s,
        straggle=0.1,
        save_s=save_s,
        every_steps=config.checkpoint.every_steps,
        trainer_fails_s=fails_s(cluster, step.ranks if found else devices),
        restart_s=cluster.failures.restart_minutes * 60,
    )
    if found is None:
        return alone
    shares = min(found.samplers, config.data.docs_per_step)
    # Hundreds of samplers are simulated as so many groups that fail and draw together.
    groups = min(found.samplers, 64)
    each = math.ceil(found.samplers / groups)
    return replace(
        alone,
        samplers=groups,
        shares=max(1, round(shares * groups / found.samplers)),
        wave_s=found.wave_s,
        pull_s=found.pull_s,
        put_s=found.put_s,
        most_age=age,
        sampler_fails_s=fails_s(cluster, each),
        sampler_restart_s=cluster.failures.restart_minutes * 60,
    )


def _samplers(config: Config, shape: Shape, cluster: Cluster, rates: Rates, age: int) -> Sampling:
    """The fewest samplers that leave enough devices to train: each one fewer trains slower."""
    devices, samplers = cluster.devices, 0
    for _ in range(64):
        ranks = min(devices - samplers, config.data.docs_per_step)
        recompute = recomputes(config, shape, cluster, rates, ranks)
        step = predict(config, shape, rates, ranks, recompute=recompute)
        train_s = step.total_s - step.phase_s["rollout"]
        found = samplers_for(config, shape, rates, train_s, pull_gb_s(cluster), age)
        if found.samplers <= samplers:  # with one fewer, there were too few
            return sampling(config, shape, rates, samplers, train_s, pull_gb_s(cluster))
        samplers = max(samplers + 1, (samplers + found.samplers) // 2)
        if samplers >= devices:
            break
    raise ConfigError(
        f"{cluster.name} has too few devices for samplers that keep up: a step would wait for its "
        f"thoughts with any number of its {devices}; leave --age out, so that the trainer draws "
        "them itself, or name a larger cluster"
    )


def tokens_of(config: Config) -> dict[str, float]:
    """Tokens of the run: of text that is read, drawn for thoughts, computed in trees."""
    tokens, steps = Tokens.of(config), config.run.steps
    text = config.data.docs_per_step * config.data.context_tokens
    return {
        "of text": float(steps * text),
        "drawn for thoughts": float(steps * tokens.sampled),
        "of trees": float(steps * tokens.tree),
    }
