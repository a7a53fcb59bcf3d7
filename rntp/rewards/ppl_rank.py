"""Rank of the thought in its group by perplexity per length (NOVER, 2505.16022).

The rank alone: its format reward is `format_only` in a weighted sum, its efficiency reward is not
here, and the scorer is the policy, not a proxy. Known failure: ranks forget by how much, so a group
that differs by rounding only is as loud as any other.
"""

import torch
from torch import Tensor

from rntp.rewards import register
from rntp.types import RewardInputs


@register("ppl_rank")
def ppl_rank(inputs: RewardInputs) -> Tensor:
    """r = share of the group's other thoughts that score worse, ties counting half, in [0, 1],
    [P, G]; the score is −Σ_k log p(x_k | context, thought) / max(1, 1 + log10(thought tokens)),
    and less is better. A thought alone in its group earns 0. Not discounted.
    """
    others = inputs.logp_think_PGH.shape[1] - 1
    nll_PG = -inputs.logp_think_PGH.sum(dim=-1)
    # max(1, 1 + log10 n) is 1 for n = 0, too.
    score_PG = nll_PG / (1 + inputs.num_tokens_PG.clamp_min(1).to(nll_PG.dtype).log10())
    if others < 1:
        return torch.zeros_like(score_PG)
    mine, theirs = score_PG[:, :, None], score_PG[:, None, :]
    beaten = (mine < theirs).to(score_PG.dtype) + 0.5 * (mine == theirs).to(score_PG.dtype)
    return (beaten.sum(dim=-1) - 0.5) / others  # less the tie with itself
