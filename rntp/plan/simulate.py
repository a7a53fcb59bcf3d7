"""A discrete-event simulation of a run: samplers, stragglers, failures, checkpoints.

Arithmetic on means does not tell what a straggler or a failure costs where others wait for it. The
queue of events is a heap of 20 lines: a run is three kinds of actors and five kinds of events, so a
simulation package would add a dependency and save nothing; draws are counter-based, so that a
simulation is a function of its seed.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from rntp.errors import ConfigError

Action = Callable[[], None]
PATIENCE = 20.0
"""Times as long as without failures and waiting; a run that takes longer is given up."""


@dataclass(frozen=True)
class Run:
    """What is simulated; seconds.

    steps: to be done. train_s: a step without rollouts. rollout_s: of a step's rollouts in the
    trainer itself, where there are no samplers. samplers: processes that draw, each a share of
    1 / shares of a step in wave_s, behind pull_s to take the newest weights and before put_s to
    hand it over. most_age: no sampler draws for a step that is further ahead of the last update
    than this. straggle: standard deviation of the logarithm of a step's and of a wave's seconds.
    save_s: training stands still for a checkpoint, every every_steps steps. trainer_fails_s,
    sampler_fails_s: mean time between failures of the trainer as a whole, and of one sampler; inf:
    never. restart_s: from a failure to the next start's first step. sampler_restart_s: ditto.
    """

    steps: int
    train_s: float
    rollout_s: float = 0.0
    samplers: int = 0
    shares: int = 1
    wave_s: float = 0.0
    pull_s: float = 0.0
    put_s: float = 0.0
    most_age: int = 1
    straggle: float = 0.0
    save_s: float = 0.0
    every_steps: int = 100
    trainer_fails_s: float = math.inf
    sampler_fails_s: float = math.inf
    restart_s: float = 600.0
    sampler_restart_s: float = 60.0


@dataclass
class Outcome:
    """Seconds of the run: in all, and what of them was steps that count, steps done again, waiting
    for thoughts, saving and restarting. ages: updates, of each share of thoughts that was trained
    on. failures: of the trainer; lost_waves: of samplers. busy: share of their time in which
    samplers draw. steps: that were done; fewer than the run has where it was given up."""

    steps: int = 0
    wall_s: float = 0.0
    useful_s: float = 0.0
    again_s: float = 0.0
    waiting_s: float = 0.0
    saving_s: float = 0.0
    restarting_s: float = 0.0
    failures: int = 0
    lost_waves: int = 0
    drawing_s: float = 0.0
    busy: float = 0.0
    ages: list[int] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Share of the time that went into steps that count."""
        return self.useful_s / self.wall_s if self.wall_s else 0.0

    @property
    def mean_age(self) -> float:
        """Mean over the shares of thoughts."""
        return sum(self.ages) / len(self.ages) if self.ages else 0.0


def simulate(run: Run, seed: int = 0) -> Outcome:
    """Simulate a run to its last step. Raises ConfigError for a run that would never end."""
    if run.steps < 1 or run.train_s <= 0 or run.every_steps < 1:
        raise ConfigError("a simulation needs a step or more, of more than 0 s, and checkpoints")
    return _Simulation(run, seed).to_the_end()


class _Simulation:
    """Time goes from event to event. Steps count from 1; version v has been updated v times."""

    def __init__(self, run: Run, seed: int) -> None:
        self.run, self.seed, self.out = run, seed, Outcome()
        self.now, self.order = 0.0, 0
        self.events: list[tuple[float, int, Action]] = []
        self.version = self.saved = self.furthest = self.epoch = 0
        self.ready: dict[tuple[int, int], int] = {}  # (step, share): version that drew it
        self.taken: set[tuple[int, int]] = set()
        self.idle: list[int] = []
        self.waits_since: float | None = None
        self.training = self.draws = 0

    def to_the_end(self) -> Outcome:
        run = self.run
        drawn_s = run.pull_s + run.put_s + run.wave_s * run.shares / max(run.samplers, 1)
        alone_s = run.train_s + (drawn_s + run.wave_s if run.samplers else run.rollout_s)
        until = PATIENCE * (run.steps * alone_s + run.save_s * (1 + run.steps // run.every_steps))
        self._fail_later()
        for sampler in range(run.samplers):
            self._draw(sampler)
        self._try_step()
        while (self.version < run.steps or self.training) and self.now < until:
            if not self.events:
                raise ConfigError("the simulated run has come to a stop: nothing would go on")
            self.now, _, action = heapq.heappop(self.events)
            action()
        self.out.wall_s, self.out.steps = self.now, self.furthest
        if run.samplers and self.now:
            self.out.busy = self.out.drawing_s / (run.samplers * self.now)
        return self.out

    def _after(self, seconds: float, action: Action) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + seconds, self.order, action))

    def _random(self) -> random.Random:
        self.draws += 1
        return random.Random(f"{self.seed} {self.draws}")

    def _slowed(self, seconds: float) -> float:
        if not self.run.straggle:
            return seconds
        return seconds * self._random().lognormvariate(0.0, self.run.straggle)

    # The trainer

    def _try_step(self) -> None:
        """Begin the next step once all of its thoughts are there."""
        step, run = self.version + 1, self.run
        if self.training or self.version >= run.steps:
            return
        if run.samplers and any((step, n) not in self.ready for n in range(run.shares)):
            if self.waits_since is None:
                self.waits_since = self.now
            return
        if self.waits_since is not None:
            self.out.waiting_s += self.now - self.waits_since
            self.waits_since = None
        self.training, epoch = step, self.epoch
        took = self._slowed(run.train_s + (0.0 if run.samplers else run.rollout_s))
        self._after(took, lambda: self._end_step(step, took, epoch))

    def _end_step(self, step: int, took: float, epoch: int) -> None:
        if epoch != self.epoch:  # the trainer has failed meanwhile
            return
        self.training, run = 0, self.run
        if run.samplers:
            drawn = [self.ready.pop((step, n)) for n in range(run.shares)]
            self.taken -= {(step, n) for n in range(run.shares)}
            self.out.ages += [self.version - v for v in drawn]
        self.version = step
        if step > self.furthest:
            self.furthest = step
            self.out.useful_s += took
        else:
            self.out.again_s += took
        if run.save_s and (step % run.every_steps == 0 or step == run.steps):
            self.out.saving_s += run.save_s
            self.training = step
            self._after(run.save_s, lambda: self._end_save(step, epoch))
            return
        if step % run.every_steps == 0:
            self.saved = step
        self._wake()
        self._try_step()

    def _end_save(self, step: int, epoch: int) -> None:
        if epoch != self.epoch:
            return
        self.training, self.saved = 0, step
        self._wake()
        self._try_step()

    def _fail_later(self) -> None:
        if math.isfinite(self.run.trainer_fails_s):
            until = self._random().expovariate(1 / self.run.trainer_fails_s)
            self._after(until, self._fail)

    def _fail(self) -> None:
        """Lose what is not saved; thoughts that are there stay, of newer weights than are left."""
        run = self.run
        self.epoch += 1
        self.out.failures += 1
        self.out.restarting_s += run.restart_s
        if self.waits_since is not None:
            self.out.waiting_s += self.now - self.waits_since
            self.waits_since = None
        # Steps that were trained on have to be drawn again.
        self.version, self.training = self.saved, -1
        self.ready = {key: min(v, self.saved) for key, v in self.ready.items()}
        self._after(run.restart_s, self._restarted)

    def _restarted(self) -> None:
        self.training = 0
        self._fail_later()
        self._wake()
        self._try_step()

    # The samplers

    def _wake(self) -> None:
        idle, self.idle = self.idle, []
        for sampler in idle:
            self._draw(sampler)

    def _draw(self, sampler: int) -> None:
        """Claim the earliest share that nobody has, if it is not too far ahead, and draw it."""
        run = self.run
        last = min(self.version + 1 + run.most_age, run.steps)
        wanted = next(
            (
                (step, n)
                for step in range(self.version + 1, last + 1)
                for n in range(run.shares)
                if (step, n) not in self.taken
            ),
            None,
        )
        if wanted is None:
            self.idle.append(sampler)
            return
        share = wanted
        self.taken.add(share)
        version, took = self.version, run.pull_s + self._slowed(run.wave_s) + run.put_s
        if math.isfinite(run.sampler_fails_s):
            until = self._random().expovariate(1 / run.sampler_fails_s)
            if until < took:
                self._after(until, lambda: self._lose(sampler, share))
                return
        self._after(took, lambda: self._deliver(sampler, share, version, took))

    def _deliver(self, sampler: int, share: tuple[int, int], version: int, took: float) -> None:
        self.out.drawing_s += took
        self.ready[share] = min(version, self.version)
        self._draw(sampler)
        self._try_step()

    def _lose(self, sampler: int, share: tuple[int, int]) -> None:
        self.out.lost_waves += 1
        self.taken.discard(share)
        self._wake()
        self._after(self.run.sampler_restart_s, lambda: self._draw(sampler))
