"""What the memory still says of a lost span of the page, beside what it says of the next tokens
(the second task of MemTrain, 2606.03197).

For a weight of its own beside `log_ratio`. Known failure: alone it rewards any piece of the page
that the span happens to lie in, and nothing that the next tokens need.
"""

from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("lost_span", baseline="subtracts", lost_span=True)
def lost_span(inputs: RewardInputs) -> Tensor:
    """r = Σ_k log p(y_k | memory, window before y) − log p(y_k | window before y), with y a span of
    H lost tokens drawn by the counter, nats, [P, G]. See `rntp.objective.lost_spans`.
    """
    return inputs.verdicts["lost_span"]
