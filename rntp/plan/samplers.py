"""How many samplers beside the trainer a wanted age of thoughts takes. Pure functions.

Samplers are devices that hold the weights, draw the thoughts of a step's documents and put them
where the trainer takes them from. The age of a thought is the number of updates between the weights
that drew it and those that are trained on it; 0 is what the trainer itself does.
"""

import math
from dataclasses import dataclass

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.plan.rates import Rates
from rntp.plan.work import Share, amounts
from rntp.training.estimate import Shape, Tokens, number_bytes

# Share of the bytes of bfloat16 weights that an update's difference takes: 0.014 at a rate of 1e-6
# and 0.024 at 1e-5 on SmolLM2-135M (experiments/samplers/DELTAS.md). In float32 all of them change.
CHANGED = 0.03


@dataclass(frozen=True)
class Sampling:
    """samplers: devices. wave_s: seconds in which one draws the thoughts of its share of a step.
    pull_s: in which it takes over new weights. put_s: in which thoughts reach the trainer. age: of
    the thoughts, updates. trainer_waits: share of the time in which the trainer has nothing to do.
    """

    samplers: int
    wave_s: float
    pull_s: float
    put_s: float
    age: float
    trainer_waits: float


def sampling(
    config: Config, shape: Shape, rates: Rates, samplers: int, train_s: float, gb_s: float
) -> Sampling:
    """Say what so many samplers do to age and waiting, where none of them is slow or fails.

    train_s: seconds of a step without its rollouts. gb_s: at which a sampler takes weights and puts
    thoughts. A sampler draws while it takes new weights over; a share of a step is drawn with one
    version. The age is what passes from the pull to the update: a wave, what it waits in the queue
    to be one of a step's, and the way there and back, in steps.
    """
    wave = rates.seconds(amounts(Share.of(config, samplers), shape))["rollout"]
    wave_s = sum(seconds for name, seconds in wave.items() if name != "hops")
    pull_s = published_bytes(config, shape) / (gb_s * 1e9)
    put_s = rollout_bytes(config) / samplers / (gb_s * 1e9)
    shares = min(samplers, config.data.docs_per_step)
    together = wave_s * shares / samplers  # seconds in which all of them draw one step
    step_s = max(train_s, together)
    age = math.ceil((wave_s + pull_s + put_s) / step_s)
    return Sampling(samplers, wave_s, pull_s, put_s, float(age), 1 - train_s / step_s)


def samplers_for(
    config: Config,
    shape: Shape,
    rates: Rates,
    train_s: float,
    gb_s: float,
    age: int,
    most: int = 1 << 20,
) -> Sampling:
    """Find the fewest samplers with which the trainer never waits and thoughts are no older.

    Raises ConfigError where no number of them is enough: then the thoughts of one document take
    longer than so many steps.
    """
    if age < 1:
        raise ConfigError("--age must be 1 or more: thoughts of age 0 are the trainer's own")
    tried = [1 << n for n in range(most.bit_length())]
    enough = next((n for n in tried if _serves(config, shape, rates, n, train_s, gb_s, age)), None)
    if enough is None:
        best = sampling(config, shape, rates, config.data.docs_per_step, train_s, gb_s)
        raise ConfigError(
            f"no number of samplers gives thoughts of age {age}: those of one document take "
            f"{best.wave_s:.3g} s, weights {best.pull_s:.3g} s to arrive and a step {train_s:.3g} "
            f"s, so {best.age:.0f} is the least; raise --age or data.docs_per_step, lower "
            "thought.thought_tokens, or take faster links"
        )
    low, high = enough // 2, enough  # low does not do, high does
    while high - low > 1:
        middle = (low + high) // 2
        if _serves(config, shape, rates, middle, train_s, gb_s, age):
            high = middle
        else:
            low = middle
    return sampling(config, shape, rates, high, train_s, gb_s)


def published_bytes(config: Config, shape: Shape) -> float:
    """Bytes of a version of the weights on their way to a sampler, mean over versions: one of
    `rollout.samplers.whole_every` is whole, the others are what an update has changed."""
    narrow, every = number_bytes(config)[1], config.rollout.samplers.whole_every
    changed = CHANGED if config.model.dtype == "bfloat16" else 1.0
    return shape.parameters * narrow * (1 + (every - 1) * changed) / every


def rollout_bytes(config: Config) -> float:
    """Bytes of a step's thoughts on their way: ids of 4 bytes and log-probs of 4 a token."""
    return 8.0 * Tokens.of(config).sampled


def _serves(
    config: Config,
    shape: Shape,
    rates: Rates,
    samplers: int,
    train_s: float,
    gb_s: float,
    age: int,
) -> bool:
    found = sampling(config, shape, rates, samplers, train_s, gb_s)
    return found.trainer_waits < 1e-9 and found.age <= age
