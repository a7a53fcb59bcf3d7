"""What a thought adds to the bound on log p(continuation) of its whole group (JEPO, 2503.19618).

L_G = log (1/G) Σ_j p_j tightens with G, and rewards variety: one thought that hits is enough. The
reward is L_G less the same bound without this thought, so it is centred already: use it with
`objective.advantage: none`. Known failure: G close thoughts share the credit until none has any.
"""

import math

import torch
from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("sample_bound")
def sample_bound(inputs: RewardInputs) -> Tensor:
    """r_i = L_G − v_i, nats, [P, G], with s_i = Σ_k γ^k log p(x_k | context, thought i),
    L_G = log (1/G) Σ_j exp s_j and v_i = log 1/(G−1) Σ_{j≠i} exp s_j.

    At least −log(G / (G − 1)), which a thought earns that misses altogether; 0 where all are alike;
    without bound above. A thought alone in its group earns 0.
    """
    s_PG = (inputs.logp_think_PGH * inputs.discounts_H).sum(dim=-1)
    group = s_PG.shape[1]
    if group < 2:
        return torch.zeros_like(s_PG)
    own = torch.eye(group, dtype=torch.bool, device=s_PG.device)
    others_PGG = s_PG[:, None].expand(-1, group, -1).masked_fill(own, -math.inf)
    without_PG = others_PGG.logsumexp(dim=-1) - math.log(group - 1)
    return s_PG.logsumexp(dim=-1, keepdim=True) - math.log(group) - without_PG
