"""Which thoughts of a step are written down, where a run is too large to keep all of them."""

from collections.abc import Callable, Sequence

import torch

from rntp.config import Config
from rntp.rng import uniform
from rntp.types import Page

Kept = Callable[[int, int], bool]


def recorded(config: Config, pages: Sequence[Page]) -> Kept:
    """Tell by the ordinal of a page and a position in it whether its group is written down.

    As many groups as make `log.rollouts_per_step` thoughts, and one at least, those with the least
    draws: uniformly chosen among all of the step. pages: of the whole step.
    """
    most, group = config.log.rollouts_per_step, config.thought.thoughts_per_position
    places = [(page.ordinal, position) for page in pages for position in page.positions]
    if most is None or most >= len(places) * group:
        return lambda ordinal, position: True
    ordinals, positions = torch.tensor(places, dtype=torch.int64).unbind(dim=1)
    draws = uniform(config.run.seed, "record", ordinals, positions)
    least = draws.argsort(stable=True)[: max(1, most // group)]
    chosen = {places[place] for place in least.tolist()}
    return lambda ordinal, position: (ordinal, position) in chosen
