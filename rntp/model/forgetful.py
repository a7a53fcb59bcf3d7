"""Continuations read behind a window of the page and nothing else."""

from collections.abc import Sequence

import torch
from rntp_kernels.tree_attention.layout import ROOT
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.reading import bare_readings
from rntp.model.thought_tree import TokenTree
from rntp.types import Rollout


@torch.no_grad()
def bare_logp(
    model: LanguageModel, rollouts: Sequence[Rollout], window: int, horizon: int
) -> Tensor:
    """Compute log p(continuation token | start token, the last `window` tokens), nats, [P, H]."""
    device = model.device
    readings = list(bare_readings(rollouts, window, horizon, model.start_id))
    if not readings:
        return torch.zeros(0, horizon, device=device)
    tree = TokenTree.build([(ids, ROOT, 0) for ids in readings])
    ends = torch.tensor(tree.layout.offsets[1:])
    rows = ends[:, None] - horizon + torch.arange(horizon)
    positions = [(r.context.token_ids, p) for r in rollouts for p in r.positions]
    targets = torch.cat([ids[p : p + horizon] for ids, p in positions])
    hidden = tree.hidden(model).index_select(0, rows.flatten().to(device))
    logp, _, _ = model.logprob(hidden, targets.to(device))
    return logp.view(rows.shape)
