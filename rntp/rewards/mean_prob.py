"""Mean probability of the continuation, less that without a thought (RLPR, 2506.18254).

RLPR floors the difference at 0: `baseline.use: clip`.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("mean_prob", baseline="subtracts")
def mean_prob(inputs: RewardInputs) -> Tensor:
    """r = mean_k (p(x_k | context, thought) − p(x_k | context)), in [−1, 1], [P, G].

    Without a baseline nothing is subtracted. Not discounted: it is the published form.
    """
    think_PG = inputs.mean(inputs.logp_think_PGH.exp())
    if not inputs.has_baseline:
        return think_PG
    return think_PG - inputs.mean(inputs.logp_no_think_PH.exp())[:, None]
