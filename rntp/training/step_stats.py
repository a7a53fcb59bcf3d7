"""What a rank collects of its share of a step: the sums and rows that the whole step's metrics are
made of; see `rntp.training.step_metrics`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.config.correction import Correction
from rntp.model.moe import Routing
from rntp.model.reading import bare_lengths
from rntp.model.thought_tree import live
from rntp.model.tree_sizes import (
    learning_tokens,
    plain_read,
    plain_tokens,
    tree_tokens,
    unshared_tokens,
)
from rntp.objective import losses, weighting
from rntp.objective.loss import Loss
from rntp.objective.outside import asks_judges, outside_verdicts
from rntp.objective.quantities import (
    Counts,
    ForwardOutputs,
    Known,
    OtherLogprobs,
    RewardsAndAdvantages,
    loss_reads,
)
from rntp.objective.rounding import Rounding
from rntp.placement import labels
from rntp.rollout.interleaved import on_pages
from rntp.training.optimizer import Update
from rntp.training.step_table import StepTable
from rntp.types import Page, Rollout, Thought

SIZES = ("tokens/context", "tokens/thought", "tokens/spent")
VERDICTS = ("judge/missing_frac", "judge/tokens", "judge/disagreement")
CALLS = ("tools/calls", "tools/failures", "tools/withheld", "tokens/given", "tools/calling_frac")
TASKS = ("task/pass_rate", "task/solved_frac", "task/mixed_frac")
TOKENS = ("tree", "learning", "unshared", "read", "plain", "plain_learning", "plain_read", "bare")
"""Fields of `rntp.training.estimate.Tokens`; behind them the sampled tokens of the groups that
learn, and a judge's tokens."""


@dataclass
class StepStats:
    """Collects the outcomes of a rank's microbatches of a step, detached.

    counts: of the whole step.
    """

    config: Config
    rollouts: Sequence[Rollout]
    counts: Counts
    ahead: Sequence[Known] = ()
    outputs: list[ForwardOutputs] = field(default_factory=list)
    rewarded_parts: list[RewardsAndAdvantages] = field(default_factory=list)
    others: list[OtherLogprobs] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    # Of the epochs over old thoughts, where the policy has moved away from them.
    clipped_tokens: float = 0.0
    finite: bool = True

    def add(self, epoch: int, found: Known, loss: Loss) -> None:
        """Take in the outcome of one microbatch; the first epoch's is the step's."""
        self.finite = self.finite and bool(torch.isfinite(loss.total))
        if epoch > 0:
            self.clipped_tokens += float(loss.clipped_tokens)
            return
        outputs, rewarded, others = found
        self.outputs.append(outputs.detached())
        self.rewarded_parts.append(rewarded)
        self.others.append(others)
        self.losses.append(replace(loss, total=loss.total.detach()))

    def known(self, epoch: int, i: int) -> Known | None:
        """Give what is known of microbatch i before an epoch; None: it has not been run yet.

        For one more epoch over the same thoughts, the policy of the first one is the old one.
        """
        if epoch == 0:
            return self.ahead[i] if self.ahead else None
        outputs = self.outputs[i]
        others = replace(self.others[i], old_logp_M=outputs.thought_logp_M)
        return outputs, self.rewarded_parts[i], others

    def take_finite(self) -> bool:
        """Tell whether all losses since the last time were finite."""
        found, self.finite = self.finite, True
        return found

    @property
    def pages(self) -> list[Rollout]:
        """The rollouts page by page, with positions of the page."""
        return on_pages(self.rollouts)

    @property
    def thoughts(self) -> list[Thought]:
        return [t for r in self.rollouts for group in r.thoughts for t in group]

    def sums(self, asked: int) -> dict[str, Tensor]:
        """Sum what adds up to the step's numbers, by name; shapes go by the config.

        asked: tokens of a judge's tree.
        """
        found = {
            "sizes": self._sizes(),
            "tokens": self._tokens(asked),
            "losses": _numbers(
                sum(float(getattr(part, term)) for part in self.losses)
                for term in loss_terms(self.config)
            ),
            "clipped": _numbers([self.clipped_tokens]),
            "hits": labels.count_hits(
                self.pages,
                min_prefix=self.config.earliest_position,
                horizon=self.config.reward.horizon,
            ),
            "labelled": _numbers([sum(r.context.labels is not None for r in self.rollouts)]),
        }
        if routing := Routing.total(s.routing for s in self.outputs):
            found |= routing.sums()
        if self.config.data.has_tasks and self.config.thought.answer_tokens:
            found["tasks"] = self._task_sums()
        if self.config.thought.tools.use:
            found["tools"] = call_sums(self.thoughts)
        if asks_judges(self.config):
            found["judges"] = verdict_sums(self.thoughts)
        return found | (self._sums_of_thoughts() if self.counts.thought else {})

    def table(self) -> StepTable:
        """Collect the rows that only make sense beside those of the other shares."""
        pages = self._noted([Page.of(page) for page in self.pages])
        tokens = [sum(page.length for page in pages)]
        if not self.counts.thought:
            none = torch.zeros(sum(len(page.positions) for page in pages), 0, dtype=torch.float64)
            return StepTable(pages, none, none, none, none.new_zeros(len(none)), 0.0, tokens, none)
        mismatch = self._mismatch_M().abs()
        return StepTable(
            pages,
            _cat(j.reward_PG for j in self.rewarded_parts),
            _cat(j.driving_PG for j in self.rewarded_parts),
            self._gain_PG(),
            _cat(j.sensitivity_P for j in self.rewarded_parts),
            float(mismatch.max()) if len(mismatch) else 0.0,
            tokens,
            self._verdict_PG(),
        )

    def _noted(self, pages: list[Page]) -> list[Page]:
        """Pages with what a gate looks at; thoughts are what it learns from."""
        if not self.counts.thought:
            return pages
        whole = torch.cat([s.features_PF for s in self.outputs]).float()
        if not whole.numel():  # made-up outputs, of a benchmark
            return pages
        parts = whole.split([len(page.positions) for page in pages])
        return [replace(p, features_KF=own) for p, own in zip(pages, parts, strict=True)]

    def _verdict_PG(self) -> Tensor:
        """Of judges outside of the run; [P, 0] where none is asked."""
        none = torch.zeros(sum(len(r.positions) for r in self.rollouts), 0)
        return outside_verdicts(self.rollouts, self.config).get("outside", none).double()

    def class_sums(self) -> dict[str, tuple[float, int]]:
        """Sum the gains of each class of a made corpus; see `rntp.placement.labels`."""
        return labels.class_sums(self.pages, self._gain_PGH()) if self.counts.thought else {}

    def _sizes(self) -> Tensor:
        """Of `SIZES`, in order."""
        return _numbers(
            [
                sum(len(r.context) for r in self.rollouts),
                sum(len(t.sampled_ids) - t.num_given for t in self.thoughts),
                sum(len(r.context) + r.num_sampled for r in self.rollouts),
            ]
        )

    def _tokens(self, asked: int) -> Tensor:
        """What the share has computed: of `TOKENS`, in order."""
        config, horizon, reads = self.config, self.config.reward.horizon, loss_reads(self.config)
        learned = self.rollouts
        if config.objective.skips_groups:
            live_P = torch.cat([j.live_P(config).cpu() for j in self.rewarded_parts])
            learned = live(learned, live_P, reads)
        plain = [plain_tokens(r, horizon, reads) for r in self.rollouts]
        return _numbers(
            [
                sum(tree_tokens(r, horizon, reads) for r in self.rollouts),
                sum(learning_tokens(r, horizon, reads) for r in learned),
                sum(unshared_tokens(r, horizon, reads.window) for r in self.rollouts),
                sum(len(r.context) for r in self.rollouts),
                sum(every for every, _ in plain),
                sum(plain_tokens(r, horizon, reads)[1] for r in learned),
                sum(plain_read(r) for r in self.rollouts),
                0
                if reads.window is None
                else sum(sum(bare_lengths(r, reads.window, horizon)) for r in self.rollouts),
                sum(r.num_sampled for r in learned),
                asked,
            ]
        )

    def _sums_of_thoughts(self) -> dict[str, Tensor]:
        """A sum and how many it is of, where the number is not in `Counts`."""
        think = _cat(s.think_logp_PGH for s in self.outputs)
        empty = _cat(s.no_think_logp_PH for s in self.outputs)
        scored_P = self._scored_P()
        entropy_M = _cat(s.thought_entropy_M for s in self.outputs)
        thoughts, written = self.thoughts, [t for t in self.thoughts if not t.kept]
        drawn = [
            torch.tensor([t.num_drawn - len(t.answer_ids), len(t.answer_ids)]) for t in thoughts
        ]
        of_thought_M = torch.cat([torch.tensor([True, False]).repeat_interleave(n) for n in drawn])
        logp_M = self._logp_M()
        sampler_M = _cat(e.sampler_logp_M for e in self.others)
        rounding = Rounding.total([j.rounding for j in self.rewarded_parts])
        names = self.rewarded_parts[0].rewards
        found = {
            "think": _numbers([think.sum(), think.shape[1] * scored_P.sum()]),
            "empty": _numbers([empty.sum(), scored_P.sum()]),
            "gain": (think - empty[:, None]).sum(),
            "thoughts": _numbers(
                [
                    sum(t.num_tokens for t in written),
                    sum(t.closed for t in written),
                    sum(t.answer.shape[0] for t in written),
                    sum(t.answer_ended for t in written),
                    len(written),
                ]
            ),
            "kl_sampler": losses.kl_estimate(logp_M, sampler_M),
            "entropy": _numbers([entropy_M[of_thought_M].sum(), of_thought_M.sum()]),
            "rounding": _numbers([rounding.squares, rounding.tokens]),
            "rewards": _numbers(
                _sum(name, _cat(j.rewards[name] for j in self.rewarded_parts)) for name in names
            ),
        }
        if self.config.reading.window is not None:
            found["whole"] = _cat(s.whole_logp_PH for s in self.outputs).sum()
        if self.config.reading.mixing:
            weights = _cat(s.weight_PGH for s in self.outputs if s.weight_PGH is not None)
            alone = _cat(s.alone_logp_PGH for s in self.outputs if s.alone_logp_PGH is not None)
            found["mixing"] = _numbers([weights.sum(), alone.sum()])
        return found | self._sums_of_options(logp_M)

    def _sums_of_options(self, logp_M: Tensor) -> dict[str, Tensor]:
        """What only some objectives have."""
        objective = self.config.objective
        found: dict[str, Tensor] = {}
        correction = self.config.correction
        if correction.weighs or self.config.rollout.samplers.max_age:
            found |= self._sums_of_ratios(correction)
        if objective.drops_groups:
            counted_P = torch.cat([j.counted_P.cpu() for j in self.rewarded_parts])
            found["dropped"] = (~counted_P).sum()
        if objective.kl_weight > 0:
            references = (e.reference_logp_M for e in self.others)
            reference_M = _cat(r for r in references if r is not None)
            found["kl_reference"] = losses.kl_per_token(logp_M, reference_M, "k3").sum()
        if self.config.thought.source == "policy_or_none":
            forced = sum(len(set(r.positions)) for r in self.rollouts)  # one of each group
            none = sum(len(t.content) == 0 for t in self.thoughts)
            found["none"] = _numbers([none - forced, len(self.thoughts) - forced])
        return found

    def _sums_of_ratios(self, correction: Correction) -> dict[str, Tensor]:
        """Of policy / sampler: how many are cut and dropped, and what tells how many tokens as
        the policy draws them the step is worth (Kish): Σ ratio and Σ ratio²."""
        drawn = torch.tensor([t.num_drawn for t in self.thoughts])
        index_M = torch.arange(len(drawn)).repeat_interleave(drawn)
        ratio_M = weighting.ratio_of_sampler(
            self._mismatch_M(), torch.zeros(()), correction.of, index_M
        )
        found: dict[str, Tensor] = {"ratios": _numbers([ratio_M.sum(), ratio_M.square().sum()])}
        if correction.cap > 0:
            found["truncated"] = (ratio_M > correction.cap).sum()
        if correction.mask != (0.0, 0.0):
            found["masked"] = (~weighting.kept(ratio_M, correction.mask)).sum()
        return found

    def _logp_M(self) -> Tensor:
        return _cat(s.thought_logp_M for s in self.outputs)

    def _mismatch_M(self) -> Tensor:
        """log π − log π_sampler of each sampled token, nats."""
        return self._logp_M() - _cat(e.sampler_logp_M for e in self.others)

    def right_PG(self) -> Tensor:
        """What the rules of tasks give the answers; 0 on pages."""
        parts = [
            p.reward_PG.new_zeros(p.reward_PG.shape) if p.right_PG is None else p.right_PG
            for p in self.rewarded_parts
        ]
        return _cat(iter(parts))

    def _task_sums(self) -> Tensor:
        """Right answers to tasks, and answers; tasks that some answer solves, that some and not all
        solve, and all of them."""
        are = [r.context.task is not None for r in self.rollouts for _ in r.positions]
        if not any(are) or not self.rewarded_parts:
            return torch.zeros(5, dtype=torch.float64)
        right_PG = (self.right_PG() >= 1)[torch.tensor(are)]
        some_P, all_P = right_PG.any(dim=1), right_PG.all(dim=1)
        return _numbers(
            [right_PG.sum(), right_PG.numel(), some_P.sum(), (some_P & ~all_P).sum(), len(right_PG)]
        )

    def _scored_P(self) -> Tensor:
        """Continuation tokens that are predicted, of each position."""
        horizon = self.config.reward.horizon
        return _numbers(r.context.num_scored(horizon) for r in self.rollouts for _ in r.positions)

    def _gain_PG(self) -> Tensor:
        """Nats a continuation token."""
        per_token = self._gain_PGH().mean(dim=2)
        return per_token * (self.config.reward.horizon / self._scored_P())[:, None]

    def _gain_PGH(self) -> Tensor:
        """Of every continuation token, nats."""
        think = _cat(s.think_logp_PGH for s in self.outputs)
        return think - _cat(s.no_think_logp_PH for s in self.outputs)[:, None]


def call_sums(thoughts: Sequence[Thought]) -> Tensor:
    """Of `CALLS`, in order, and how many thoughts there are."""
    calls = [call for t in thoughts for call in t.calls]
    return _numbers(
        [
            len(calls),
            sum(bool(call.failure) for call in calls),
            sum(sum(call.withheld.values()) for call in calls),
            sum(t.num_given for t in thoughts),
            sum(bool(t.calls) for t in thoughts),
            len(thoughts),
        ]
    )


def verdict_sums(thoughts: Sequence[Thought]) -> Tensor:
    """Of `VERDICTS`, in order: thoughts that lack a verdict, tokens of the others' questions and
    replies, and how far judges are apart; then those that lack none, and all."""
    said = [[v.yes for v in t.verdicts.values()] for t in thoughts]
    whole = [[yes for yes in of if yes is not None] for of in said if None not in of]
    return _numbers(
        [
            len(said) - len(whole),
            sum(v.tokens for t in thoughts for v in t.verdicts.values()),
            sum(max(of) - min(of) for of in whole if of),
            len(whole),
            len(said),
        ]
    )


def update_metrics(step: int, updates: Sequence[Update]) -> dict[str, float]:
    """Measure the updates of a step; norm and rate are the last one's."""
    return {
        "step": step,
        "grad_norm": updates[-1].grad_norm,
        "lr": updates[-1].lr,
        "skipped": sum(update.skipped for update in updates),
    }


def loss_terms(config: Config) -> list[str]:
    """List the terms of the loss that a run reports."""
    objective = config.objective
    terms = ["total", "pg", "continuation", "ntp"]
    terms += ["kl"] if objective.kl_weight > 0 and objective.kl.get("in") == "loss" else []
    terms += ["entropy"] if objective.entropy_weight > 0 else []
    terms += ["router"] if objective.router_weight > 0 else []
    return terms


def _sum(scheme: str, reward_PG: Tensor) -> Tensor:
    """Of all thoughts that have a reward: a missing verdict is none."""
    return reward_PG.nansum() if rewards.NEEDS[scheme].outside else reward_PG.sum()


def _cat(tensors: Iterator[Tensor]) -> Tensor:
    """In float64: sums of these do not depend on how a step is cut."""
    return torch.cat([t.detach().cpu().double() for t in tensors])


def _numbers(values: Iterable[float | Tensor]) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float64)
