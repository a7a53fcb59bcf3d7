"""Probability gained, token by token, where hard tokens count more (NRT, 2602.11549).

Known failure: the plain mean of probabilities is made of easy tokens, which the weights mend; of
long continuations every probability is small and the rewards lie close together.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.rewards.weighted_log_ratio import surprise_weights
from rntp.types import RewardInputs


@register("weighted_prob", baseline="needs")
def weighted_prob(inputs: RewardInputs) -> Tensor:
    """r = (1/H) Σ_k w_k (p(x_k | context, thought) − p(x_k | context)), in [−H, H], [P, G].

    w_k: see `surprise_weights`. Not discounted. The paper floors it at 0: `baseline.use: clip`.
    """
    assert inputs.has_baseline
    gained_PGH = inputs.logp_think_PGH.exp() - inputs.logp_no_think_PH.exp()[:, None]
    return inputs.mean(gained_PGH * surprise_weights(inputs)[:, None])
