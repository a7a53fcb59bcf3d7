"""From a placement policy to the callback that an engine asks for positions."""

import torch
from torch import Tensor

from rntp import placement
from rntp.chance import uniform
from rntp.config import Config
from rntp.labels import class_numbers, oracle_gains
from rntp.learnability import Learnability
from rntp.rollout import Place
from rntp.types import Context, PlacementInputs


def placer(
    config: Config,
    policy: str,
    purpose: str,
    count: int | None = None,
    learnability: Learnability | None = None,
) -> Place:
    """Positions of a context by `policy`: `count` of them, or as many as training takes.

    purpose names the stream of its noise. learnability: the record that the policy of that name
    goes by.
    """
    count = count or config.placement.positions_per_doc

    def place(context: Context, entropy: Tensor, nll: Tensor) -> tuple[int, ...]:
        index = torch.arange(len(context))
        noise = uniform(config.run.seed, purpose, context.ordinal, index)
        return placement.place(
            placement.REGISTRY[policy],
            PlacementInputs(
                entropy_L=entropy,
                nll_L=nll,
                noise_L=noise,
                learnability_L=(
                    learnability.of(context, entropy) if learnability else torch.zeros(len(context))
                ),
                oracle_gain_L=oracle_gains(context.labels) if context.labels else None,
                class_L=class_numbers(context.labels) if context.labels else None,
            ),
            count=count,
            min_prefix=config.placement.min_prefix_tokens,
            horizon=config.reward.horizon,
        )

    return place
