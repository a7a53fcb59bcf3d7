"""Rewards of a whole step ahead of its losses, where advantages need all of them."""

from collections.abc import Sequence

import torch

from rntp.config import Config
from rntp.model.microbatches import Batch
from rntp.model.moe import Routing
from rntp.objective.passes import Passes
from rntp.objective.quantities import Counts, Known, RewardsAndAdvantages
from rntp.objective.rewards_and_advantages import advantages_over_step
from rntp.runtime.ranks import Ranks, on_device
from rntp.training.phases import Phases
from rntp.types import Rollout


@torch.no_grad()
def rewards_ahead(
    passes: Passes,
    batches: Sequence[Batch],
    ranks: Ranks,
    phases: Phases,
    usual_std: float,
) -> list[Known]:
    """Run every microbatch of this rank once without gradients, and centre over all ranks' rewards.

    Returns nothing where a microbatch's own rewards suffice (`objective.needs_whole_step`).
    usual_std: of a group's rewards; see `rntp.objective.credit`.
    """
    config = passes.config
    if not config.objective.needs_whole_step:
        return []
    found: list[Known] = []

    def run_mine() -> list[RewardsAndAdvantages]:
        for i, batch in enumerate(batches):
            phases.poll()
            with phases("score", i, len(batches)):
                found.append(passes.run(passes.tree(batch), batch))
        return [rewarded for _, rewarded, _ in found]

    of_ranks = ranks.gather(run_mine, "score")
    centred = advantages_over_step([r for part in of_ranks for r in part], config, usual_std)
    before = sum(map(len, of_ranks[: ranks.rank]))
    mine = on_device(centred[before:][: len(found)], passes.device)
    return [(out, own, others) for (out, _, others), own in zip(found, mine, strict=True)]


def count(
    rollouts: Sequence[Rollout], ahead: Sequence[Known], config: Config, ranks: Ranks
) -> Counts:
    """Count what the losses of a step are divided by, over all ranks.

    ahead: what `rewards_ahead` gave.
    """
    counted_P = torch.cat([rewarded.counted_P for _, rewarded, _ in ahead]) if ahead else None
    routing = Routing.total(outputs.routing for outputs, _, _ in ahead)
    horizon = config.reward.horizon
    return Counts.total(
        ranks.gather(lambda: Counts.of(rollouts, horizon, counted_P, routing), "count")
    )
