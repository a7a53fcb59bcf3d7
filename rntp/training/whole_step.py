"""What the shares of a step need of each other before their losses: counts, and rewards where
advantages look at all of them.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rntp.config import Config
from rntp.model.microbatches import Batch
from rntp.model.moe import Routing
from rntp.objective.passes import Passes
from rntp.objective.quantities import Counts, Known, RewardsAndAdvantages
from rntp.objective.rewards_and_advantages import advantages_over_step
from rntp.objective.rounding import Rounding
from rntp.runtime.ranks import Ranks
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

    def run_mine() -> dict[str, Tensor]:
        for i, batch in enumerate(batches):
            phases.poll()
            with phases("score", i, len(batches)):
                found.append(passes.run(passes.tree(batch), batch))
        return scored_rows([rewarded for _, rewarded, _ in found])

    of_ranks = ranks.gather_rows(run_mine, "score")
    mine = [rewarded for _, rewarded, _ in found]
    before = [scored(rows, mine[0]) for rows in of_ranks[: ranks.rank]]
    after = [scored(rows, mine[0]) for rows in of_ranks[ranks.rank + 1 :]]
    centred = advantages_over_step([*before, *mine, *after], config, usual_std)
    own = centred[len(before) :][: len(mine)]
    return [(out, own, others) for (out, _, others), own in zip(found, own, strict=True)]


def scored_rows(parts: Sequence[RewardsAndAdvantages]) -> dict[str, Tensor]:
    """What the advantages of other shares of a step look at in this one: rewards and their
    rounding, a row a position."""
    rounding = Rounding.total([part.rounding for part in parts])
    return {
        "driving": torch.cat([part.driving_PG for part in parts]),
        "sensitivity": torch.cat([part.sensitivity_P for part in parts]),
        "rounding": torch.tensor([[rounding.squares, float(rounding.tokens)]], dtype=torch.float64),
    }


def scored(rows: Mapping[str, Tensor], like: RewardsAndAdvantages) -> RewardsAndAdvantages:
    """Another share of the step, from its `scored_rows`, as the advantages of this one see it.

    like: whose device and types it takes. Its advantages are of no use here, nor is its baseline,
    which weighs its own positions only: both are zeros. Each row is a group of its own: the step as
    a whole is compared by what no group enters into.
    """
    driving_PG = rows["driving"].to(like.driving_PG)
    squares, tokens = rows["rounding"][0].tolist()
    positions = len(driving_PG)
    return RewardsAndAdvantages(
        rewards={},
        reward_PG=driving_PG,
        driving_PG=driving_PG,
        no_think_logp_PH=like.no_think_logp_PH.new_zeros(positions, like.no_think_logp_PH.shape[1]),
        advantage_PG=torch.zeros_like(driving_PG),
        counted_P=torch.ones(positions, dtype=torch.bool, device=driving_PG.device),
        group_P=torch.arange(positions),
        sensitivity_P=rows["sensitivity"].to(like.sensitivity_P),
        rounding=Rounding(squares, int(tokens)),
    )


def sample_and_count(
    sample: Callable[[], list[Rollout]], config: Config, ranks: Ranks
) -> tuple[list[Rollout], Counts]:
    """Sample this rank's share of a step, and count over all ranks what its losses are divided by.

    That all ranks have sampled is agreed with it.
    """
    kept: list[list[Rollout]] = []

    def work() -> dict[str, Tensor]:
        kept.append(sample())
        return Counts.of(kept[0], config.reward.horizon).sums()

    counts = Counts.of_sums(ranks.total(work, "rollout"))
    return kept[0], counts


def recount(
    rollouts: Sequence[Rollout], ahead: Sequence[Known], config: Config, ranks: Ranks
) -> Counts:
    """Count once more, where `rewards_ahead` says which groups count; over all ranks."""
    counted_P = torch.cat([rewarded.counted_P for _, rewarded, _ in ahead])
    routing = Routing.total(outputs.routing for outputs, _, _ in ahead)
    own = Counts.of(rollouts, config.reward.horizon, counted_P, routing)
    return Counts.of_sums(ranks.total(own.sums, "count"))
