"""Probability of the whole continuation (VeriFree, 2505.21493).

Known failure: it vanishes for more than about 20 tokens, where no thought of a group is told from
another (2602.03979); watch `group/dead_frac`.
"""

import torch
from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("prob")
def prob(inputs: RewardInputs) -> Tensor:
    """r = Π_k p(x_k | context, thought), in [0, 1], [P, G]; 0 if the model did not close the
    thought itself, as in the paper. Not discounted: a product of probabilities is one.
    """
    product_PG = inputs.logp_think_PGH.sum(dim=-1).exp()
    return torch.where(inputs.closed_PG, product_PG, 0)
