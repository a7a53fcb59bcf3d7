"""The whole step, of the shares that ranks had of it: its metrics, and what follows training.

Each rank sends sums of one length, added up on the way, and the rows of its share: a few numbers a
position and three a thought. Token ids go to rank 0 alone, which writes down their digest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.data.stream import digest_of
from rntp.gate import GateAlong
from rntp.gate.ranking import auc
from rntp.model.moe import Routing
from rntp.objective.advantages import dead_groups
from rntp.objective.baselines import members
from rntp.objective.outside import filled
from rntp.objective.quantities import Counts
from rntp.objective.rounding import Rounding, tolerance
from rntp.placement import Bands, labels
from rntp.placement.picked import picked
from rntp.placement.repeats import group_of_rows, rows_of_groups, spread
from rntp.runtime.ranks import Ranks
from rntp.training.estimate import Tokens
from rntp.training.step_stats import (
    CALLS,
    SIZES,
    TASKS,
    TOKENS,
    VERDICTS,
    StepStats,
    loss_terms,
)
from rntp.training.step_table import StepTable
from rntp.types import Page


@dataclass(frozen=True)
class WholeStep:
    """A step as all ranks see it, the same numbers on each.

    sums: of all shares, by name (`StepStats.sums`). classes: gains by class of a made corpus.
    names: of the reward schemes. digest: of the contexts and positions, "" but on rank 0.
    """

    config: Config
    counts: Counts
    sums: Mapping[str, Tensor]
    table: StepTable
    names: Sequence[str]
    routing: Routing | None
    classes: Mapping[str, float]
    digest: str

    @classmethod
    def exchange(
        cls, stats: StepStats, ranks: Ranks, asked: int, more: Mapping[str, float]
    ) -> "WholeStep":
        """Put together the shares of all ranks; all of them have to ask for it.

        asked: tokens of this share in a judge's tree. more: numbers to add up beside, by name.
        """
        beside = {name: torch.tensor(float(value)) for name, value in more.items()}
        sums = ranks.total(lambda: {**stats.sums(asked), **beside}, "record")
        table = StepTable.joined(ranks.gather_rows(lambda: stats.table().packed(), "record"))
        # The names of classes are in no vector. Only made corpora have them.
        parts = ranks.gather(stats.class_sums, "record") if sums["labelled"] else []
        own = Routing.total(s.routing for s in stats.outputs)
        return cls(
            stats.config,
            stats.counts,
            sums,
            table,
            list(stats.rewarded_parts[0].rewards),
            own.of_sums(sums) if own else None,
            labels.class_means(parts),
            _digest(stats, table, ranks),
        )

    @property
    def pages(self) -> Sequence[Page]:
        """All pages, in the order of the step."""
        return self.table.pages

    @property
    def compared_PG(self) -> Tensor:
        """All that thoughts are compared with, as `rntp.objective.credit` sees it."""
        return members(self.rewards_PG(self.table.driving_PG), self.config.baseline.use)

    @property
    def group_P(self) -> Tensor:
        """The group of each row of thoughts, int64; see `rntp.placement.repeats`."""
        return group_of_rows(page.positions for page in self.pages)

    @property
    def spread_Q(self) -> Tensor:
        """Standard deviation of what the thoughts of each group are compared with."""
        return spread(self.compared_PG, self.group_P)

    def rewards_PG(self, reward_PG: Tensor) -> Tensor:
        """Rewards without gaps: where a judge's verdict is missing the mean of its group stands."""
        return filled(reward_PG) if self.table.verdict_PG.shape[1] else reward_PG

    def metrics(self) -> dict[str, float]:
        """Give means over the whole step; units in the names' documentation (README, Metrics).

        A step without thoughts has losses and sizes only.
        """
        tokens = self.tokens()
        terms = zip(loss_terms(self.config), self.sums["losses"].tolist(), strict=True)
        return (
            (self._of_thoughts() if self.counts.thought else {})
            | {f"loss/{term}": value for term, value in terms}
            | dict(zip(SIZES, map(int, self.sums["sizes"].tolist()), strict=True))
            | {
                "tokens/tree": tokens.tree,
                "tokens/learning": tokens.learning,
                "tokens/unshared": tokens.unshared,
            }
            | (self.routing.metrics() if self.routing else {})
            | self._of_calls()
            | self._of_judges()
            | self._of_tasks()
            | {
                "data/ordinal_first": self.pages[0].ordinal,
                "data/visits_max": max(page.visit for page in self.pages),
            }
        )

    def _of_calls(self) -> dict[str, float]:
        """Count what thoughts have called, and what they were given, where they may."""
        if "tools" not in self.sums:
            return {}
        *counts, calling, thoughts = self.sums["tools"].tolist()
        return dict(zip(CALLS, [*map(int, counts), calling / max(thoughts, 1)], strict=True))

    def _of_judges(self) -> dict[str, float]:
        """Say how judges outside of the run did, where they are asked."""
        if "judges" not in self.sums:
            return {}
        lacking, tokens, apart, whole, thoughts = self.sums["judges"].tolist()
        values = (lacking / max(thoughts, 1), int(tokens), apart / max(whole, 1))
        found = dict(zip(VERDICTS, values, strict=True))
        there = ~self.table.verdict_PG.isnan()
        agreement = auc(self.table.verdict_PG[there], self.table.gain_PG[there] > 0)
        audited = {name: float(v) for name, v in self.sums.items() if name.startswith("judge/")}
        return found | ({} if agreement is None else {"judge/auc": agreement}) | audited

    def _of_tasks(self) -> dict[str, float]:
        """Say how many attempts at tasks were right; nothing of a step without any."""
        if "tasks" not in self.sums or not self.sums["tasks"][1]:
            return {}
        right, attempts, some, mixed, tasks = self.sums["tasks"].tolist()
        return dict(zip(TASKS, (right / attempts, some / tasks, mixed / tasks), strict=True))

    def tokens(self) -> Tokens:
        """Count what the step has computed."""
        *numbers, learned, asked = map(int, self.sums["tokens"].tolist())
        rows = replace(self.counts, thought=learned).learning_rows(self.config)
        return Tokens(
            **dict(zip(TOKENS, numbers, strict=True)),
            sampled=self.counts.thought,
            head_rows=self.counts.head_rows(self.config),
            learning_rows=rows,
            asked=asked,
        )

    def _of_thoughts(self) -> dict[str, float]:
        sums, config = self.sums, self.config
        reward_PG = self.rewards_PG(self.table.reward_PG)
        num_tokens, closed, answer, ended, thoughts = sums["thoughts"].tolist()
        sampled = self.counts.thought
        rounding = Rounding(float(sums["rounding"][0]), int(sums["rounding"][1]))
        sensitivity_P = self.table.sensitivity_P
        group_P, noise_P = self.group_P, tolerance(sensitivity_P, rounding)
        parts = rows_of_groups(group_P)
        dead_Q = torch.cat(
            [
                dead_groups(self.compared_PG[rows].flatten(1), noise_P[rows].amax(dim=1))
                for rows in parts
            ]
        )
        found = {
            "reward/mean": reward_PG.mean(),
            "reward/std": reward_PG.std(correction=0),
            "group/reward_std": spread(reward_PG, group_P).mean(),
            "reward/noise_floor": rounding.nats * sensitivity_P.square().mean().sqrt(),
            "gain/mean": sums["gain"] / sums["think"][1],
            "nll/no_think": -_mean(sums["empty"]),
            "nll/think": -_mean(sums["think"]),
            "thought/tokens_mean": num_tokens / thoughts,
            "thought/closed_frac": closed / thoughts,
            "group/dead_frac": dead_Q.double().mean(),
            "kl/sampler": sums["kl_sampler"] / sampled,
            "kl/sampler_max_abs": self.table.mismatch_max,
            "entropy/thought": _mean(sums["entropy"]),
            "policy/clip_frac": sums["clipped"] / sampled,
        }
        if config.repeated_positions:
            found["group/thoughts_max"] = torch.bincount(group_P).max() * reward_PG.shape[1]
        if "whole" in sums:
            found |= self._of_window()
        if "none" in sums:
            found["thought/none_frac"] = _mean(sums["none"])
        if "mixing" in sums:
            weights, alone = sums["mixing"] / sums["think"][1]
            found |= {"mixing/weight": weights, "nll/alone": -alone}
        if len(self.pages) > 1:
            found["reward/sem"] = standard_error(reward_PG, [len(p.positions) for p in self.pages])
        for name, total in zip(self.names, sums["rewards"], strict=True):
            lacking = sums["judges"][0] if rewards.NEEDS[name].outside else 0
            found[f"reward/{name}"] = total / max(thoughts - lacking, 1)
        if config.thought.answer_tokens:
            found["answer/tokens_mean"] = answer / thoughts
            found["answer/ended_frac"] = ended / thoughts
        for key, name, of in (
            ("policy/truncated_frac", "truncated", sampled),
            ("policy/masked_frac", "masked", sampled),
            ("group/dropped_frac", "dropped", len(reward_PG)),
            ("kl/reference", "kl_reference", sampled),
        ):
            if name in sums:
                found[key] = sums[name] / of
        bands = Bands(config.placement.band.entropy, config.placement.band.surprise)
        if "ratios" in sums:
            total, squares = sums["ratios"]
            found["policy/ess_frac"] = total.square() / (sampled * squares)
        where = picked(self.pages, bands) | labels.hit_rates(sums["hits"])
        return {key: float(value) for key, value in found.items()} | where | dict(self.classes)

    def thought_lengths(self) -> tuple[float, float]:
        """Tokens between the markers of the step's thoughts, and how many thoughts there are."""
        tokens, *_, thoughts = self.sums["thoughts"].tolist()
        return tokens, thoughts

    def judged(self, gate: GateAlong | None) -> dict[str, float]:
        """Say how good a gate is on the step's gains, before it learns from them."""
        if gate is None or not self.pages:
            return {}
        features_PF = torch.cat([page.features_KF for page in self.pages])
        return gate.judge(features_PF, self.table.gain_PG.mean(dim=1))

    def _of_window(self) -> dict[str, Tensor]:
        """Compare memories with the whole context that a reading window loses."""
        whole = self.sums["whole"] / self.sums["empty"][1]
        bound = whole - _mean(self.sums["empty"])
        gain = self.sums["gain"] / self.sums["think"][1]
        return {
            "nll/whole": -whole,
            "gain/whole": bound,
            "gain/recovered": gain / bound if bound > 0 else bound * 0,
        }


def standard_error(reward_PG: Tensor, positions: Sequence[int]) -> Tensor:
    """Compute the standard error of the mean reward, with pages as the unit drawn independently.

    Thoughts of one page are alike, so their number is not that of observations. positions: of each
    page, which must be two at least. The cluster-robust estimate: residuals add up within a page.
    """
    residual_PG = reward_PG.double() - reward_PG.double().mean()
    sums = torch.stack([part.sum() for part in residual_PG.split(list(positions))])
    pages = len(sums)
    return (pages / (pages - 1) * sums.square().sum()).sqrt() / reward_PG.numel()


def _mean(sum_and_count: Tensor) -> Tensor:
    return sum_and_count[0] / sum_and_count[1]


def _digest(stats: StepStats, table: StepTable, ranks: Ranks) -> str:
    """Take the digest of what the step saw, on rank 0.

    It is one hash over the token ids in order, so that it is the same for any number of ranks; rank
    0 is sent all of them for its sake, four bytes each.
    """
    mine = torch.cat([page.context.token_ids for page in stats.pages]).to(torch.int32)
    parts = ranks.to_first(mine, max(table.share_tokens))
    if not parts:
        return ""
    whole = torch.cat([ids[:n] for ids, n in zip(parts, table.share_tokens, strict=True)])
    each = whole.split([page.length for page in table.pages])
    return digest_of(
        (page.ordinal, ids, page.positions) for page, ids in zip(table.pages, each, strict=True)
    )
