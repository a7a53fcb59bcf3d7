"""Gain over predicting without a thought, less what the thought costs.

`token_cost` is the price λ in nats a token, `call_cost` that of a call of a tool. Known failure:
λ sets the answer; above the gain of a useful token thoughts shrink to nothing.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.rewards.log_ratio import log_ratio
from rntp.types import RewardInputs


@register("net_gain", baseline="subtracts")
def net_gain(inputs: RewardInputs) -> Tensor:
    """r = Σ_k γ^k (log p(x_k | context, thought) − log p(x_k | context)) − λ · thought tokens
    − call cost · calls, nats, [P, G]. What tools give costs nothing by its length.
    """
    cost = inputs.token_cost_P[:, None] * inputs.num_tokens_PG
    return log_ratio(inputs) - cost - inputs.call_cost_P[:, None] * inputs.num_calls_PG
