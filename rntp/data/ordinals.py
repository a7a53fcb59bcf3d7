"""Which ordinals a step takes: arithmetic of the config and of nothing else."""

from collections.abc import Collection

from rntp.config import Config
from rntp.data.order import ordinals_without

FIRST_REPLAY = 1 << 40  # ordinals of contexts that come back: no fresh one gets there


def fresh_contexts(config: Config, steps: int) -> int:
    """Count the fresh ordinals that so many steps have taken."""
    per_step = config.data.docs_per_step
    return steps * per_step - max(0, steps - 1) * config.data.replay_docs


def progress(config: Config, ordinal: int) -> float:
    """Compute the share of `ramp_steps` of `placement.policy`, which is not 0, that lies before the
    context with this ordinal, fresh or not; in [0, 1]."""
    steps = int(config.placement.policy.get("ramp_steps"))
    if ordinal >= FIRST_REPLAY:
        step = (ordinal - FIRST_REPLAY) // config.data.replay_docs
        return min(step / steps, 1.0)
    return min(ordinal / fresh_contexts(config, steps), 1.0)


def next_ordinal(config: Config, steps: int, excluded: Collection[int] = ()) -> int:
    """The first fresh ordinal that so many steps have not come to."""
    return ordinals_without(excluded, fresh_contexts(config, steps), 1)[0]


def step_ordinals(config: Config, step: int, excluded: Collection[int] = ()) -> list[int]:
    """The fresh ordinals of step 1, 2, …"""
    first, end = fresh_contexts(config, step - 1), fresh_contexts(config, step)
    return ordinals_without(excluded, first, end - first)
