"""From a placement policy to the callback that an engine asks for positions."""

import torch
from torch import Tensor

from rntp import placement
from rntp.chance import uniform
from rntp.config import Config
from rntp.rollout import Place
from rntp.types import Context, PlacementInputs


def placer(config: Config, policy: str, purpose: str) -> Place:
    """Positions of a context by `policy`; `purpose` names the stream of its noise."""

    def place(context: Context, entropy: Tensor, nll: Tensor) -> tuple[int, ...]:
        index = torch.arange(len(context))
        noise = uniform(config.run.seed, purpose, context.ordinal, index)
        return placement.place(
            placement.REGISTRY[policy],
            PlacementInputs(entropy, nll, noise),
            count=config.placement.positions_per_doc,
            min_prefix=config.placement.min_prefix_tokens,
            horizon=config.reward.horizon,
        )

    return place
