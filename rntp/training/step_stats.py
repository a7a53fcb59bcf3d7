"""From what a step computed to what it reports: the metrics line and the rollout rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.moe import Routing
from rntp.model.thought_tree import (
    learning_tokens,
    live,
    plain_read,
    plain_tokens,
    thought_branch,
    tree_tokens,
    unshared_tokens,
)
from rntp.model.tokenizer import decode, token_strings
from rntp.objective import losses
from rntp.objective.advantages import dead_groups
from rntp.objective.baselines import members
from rntp.objective.loss import Loss
from rntp.objective.quantities import (
    Counts,
    ForwardOutputs,
    Known,
    OtherLogprobs,
    RewardsAndAdvantages,
    loss_reads,
)
from rntp.objective.rounding import Rounding, tolerance
from rntp.placement import Bands, labels
from rntp.placement.picked import picked
from rntp.rollout.interleaved import on_pages
from rntp.training.estimate import Tokens
from rntp.training.optimizer import Update
from rntp.types import Context, Rollout, Thought


@dataclass
class StepStats:
    """Collects the outcomes of a step's microbatches, detached."""

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

    @classmethod
    def joined(cls, parts: Sequence["StepStats"]) -> "StepStats":
        """The tallies of all ranks, in the order of the ordinals, as that of the whole step."""
        whole = cls(parts[0].config, [r for part in parts for r in part.rollouts], parts[0].counts)
        for part in parts:
            whole.outputs += part.outputs
            whole.rewarded_parts += part.rewarded_parts
            whole.others += part.others
            whole.losses += part.losses
            whole.clipped_tokens += part.clipped_tokens
        return whole

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
    def reward_PG(self) -> Tensor:
        """Of the scheme that drives, all positions of the step in order."""
        return _cat(j.reward_PG for j in self.rewarded_parts)

    @property
    def gain_PG(self) -> Tensor:
        """Of every thought, nats per continuation token."""
        think = _cat(s.think_logp_PGH for s in self.outputs)
        return (think - _cat(s.no_think_logp_PH for s in self.outputs)[:, None]).mean(dim=2)

    @property
    def thoughts(self) -> list[Thought]:
        return [t for r in self.rollouts for group in r.thoughts for t in group]

    @property
    def compared_PG(self) -> Tensor:
        """All that thoughts are compared with, as `rntp.objective.credit` sees it."""
        return members(_cat(j.driving_PG for j in self.rewarded_parts), self.config.baseline.use)

    def metrics(self) -> dict[str, float]:
        """Means over the whole step; units in the names' documentation (README, Metrics).

        A step without thoughts has losses and sizes only.
        """
        tokens = self.tokens()
        sizes = {
            "tokens/context": sum(len(r.context) for r in self.rollouts),
            "tokens/thought": sum(len(t.sampled_ids) for t in self.thoughts),
            "tokens/spent": sum(len(r.context) + r.num_sampled for r in self.rollouts),
            "tokens/tree": tokens.tree,
            "tokens/learning": tokens.learning,
            "tokens/unshared": tokens.unshared,
        }
        objective = self.config.objective
        terms = ["total", "pg", "continuation", "ntp"]
        terms += ["kl"] if objective.kl_weight > 0 and objective.kl.get("in") == "loss" else []
        terms += ["entropy"] if objective.entropy_weight > 0 else []
        terms += ["router"] if objective.router_weight > 0 else []
        losses = {
            f"loss/{term}": float(sum(getattr(part, term) for part in self.losses))
            for term in terms
        }
        routing = Routing.total(s.routing for s in self.outputs)
        experts = routing.metrics() if routing else {}
        return (self._of_thoughts() if self.counts.thought else {}) | losses | sizes | experts

    def tokens(self) -> Tokens:
        """Return what the step has computed, without a judge."""
        config, horizon, reads = self.config, self.config.reward.horizon, loss_reads(self.config)
        learned = self.rollouts
        if config.objective.skips_groups:
            learned = live(
                learned, _cat(j.live_P(config) for j in self.rewarded_parts).cpu(), reads
            )
        counts = replace(self.counts, thought=sum(r.num_sampled for r in learned))
        plain = [plain_tokens(r, horizon, reads) for r in self.rollouts]
        return Tokens(
            tree=sum(tree_tokens(r, horizon, reads) for r in self.rollouts),
            learning=sum(learning_tokens(r, horizon, reads) for r in learned),
            unshared=sum(unshared_tokens(r, horizon) for r in self.rollouts),
            read=sum(len(r.context) for r in self.rollouts),
            sampled=self.counts.thought,
            head_rows=self.counts.head_rows(config),
            learning_rows=counts.learning_rows(config),
            plain=sum(every for every, _ in plain),
            plain_learning=sum(plain_tokens(r, horizon, reads)[1] for r in learned),
            plain_read=sum(plain_read(r) for r in self.rollouts),
        )

    def _of_thoughts(self) -> dict[str, float]:
        think = _cat(s.think_logp_PGH for s in self.outputs)
        empty = _cat(s.no_think_logp_PH for s in self.outputs)
        logp_M = _cat(s.thought_logp_M for s in self.outputs)
        reward = self.reward_PG
        thoughts = self.thoughts
        lengths = torch.tensor([float(t.num_tokens) for t in thoughts])
        drawn = [torch.tensor([len(t.sampled_ids), len(t.answer_ids)]) for t in thoughts]
        of_thought_M = torch.cat([torch.tensor([True, False]).repeat_interleave(n) for n in drawn])
        sampler_M = _cat(e.sampler_logp_M for e in self.others)
        mismatch = logp_M - sampler_M
        rounding = Rounding.total([j.rounding for j in self.rewarded_parts])
        sensitivity_P = _cat(j.sensitivity_P for j in self.rewarded_parts)
        dead_P = dead_groups(self.compared_PG, tolerance(sensitivity_P, rounding))
        found = {
            "reward/mean": reward.mean(),
            "reward/std": reward.std(correction=0),
            "group/reward_std": reward.std(dim=1, correction=0).mean(),
            "reward/noise_floor": rounding.nats * sensitivity_P.square().mean().sqrt(),
            "gain/mean": (think - empty[:, None]).mean(),
            "nll/no_think": -empty.mean(),
            "nll/think": -think.mean(),
            "thought/tokens_mean": lengths.mean(),
            "thought/closed_frac": torch.tensor([float(t.closed) for t in thoughts]).mean(),
            "group/dead_frac": dead_P.float().mean(),
            "kl/sampler": losses.kl_estimate(logp_M, sampler_M) / len(logp_M),
            "kl/sampler_max_abs": mismatch.abs().max(),
            "entropy/thought": _cat(s.thought_entropy_M for s in self.outputs)[of_thought_M].mean(),
        }
        if len(self.pages) > 1:
            found["reward/sem"] = standard_error(reward, [len(p.positions) for p in self.pages])
        for name in self.rewarded_parts[0].rewards:
            found[f"reward/{name}"] = _cat(j.rewards[name] for j in self.rewarded_parts).mean()
        if self.config.thought.answer_tokens:
            answers = torch.tensor([float(t.answer.shape[0]) for t in thoughts])
            found["answer/tokens_mean"] = answers.mean()
            found["answer/ended_frac"] = torch.tensor(
                [float(t.answer_ended) for t in thoughts]
            ).mean()
        found["policy/clip_frac"] = torch.tensor(self.clipped_tokens / self.counts.thought)
        found |= self._of_options(logp_M, mismatch)
        of_labels = labels.placement_metrics(
            self.pages,
            min_prefix=self.config.placement.min_prefix_tokens,
            horizon=self.config.reward.horizon,
        ) | labels.class_gains(self.pages, think - empty[:, None])
        section = self.config.placement
        where = picked(self.pages, Bands(section.band.entropy, section.band.surprise))
        return {key: float(value) for key, value in found.items()} | where | of_labels

    def _of_options(self, logp_M: Tensor, mismatch_M: Tensor) -> dict[str, Tensor]:
        """What only some objectives have. mismatch_M: log π − log π_sampler, nats."""
        objective = self.config.objective
        found = {}
        if (cap := objective.algorithm.get("importance_cap")) > 0:
            cut = mismatch_M.exp() > cap
            found["policy/truncated_frac"] = cut.float().mean()
        if objective.drops_groups:
            counted_P = _cat(j.counted_P for j in self.rewarded_parts)
            found["group/dropped_frac"] = (~counted_P).float().mean()
        if objective.kl_weight > 0:
            references = (e.reference_logp_M for e in self.others)
            reference_M = _cat(r for r in references if r is not None)
            found["kl/reference"] = losses.kl_per_token(logp_M, reference_M, "k3").mean()
        return found

    def rows(self, model: LanguageModel) -> Iterator[dict[str, object]]:
        """One row a thought, for rollouts/step_N.jsonl."""
        think = _cat(s.think_logp_PGH for s in self.outputs)
        gain = think - _cat(s.no_think_logp_PH for s in self.outputs)[:, None]
        advantage = _cat(j.advantage_PG for j in self.rewarded_parts)
        reward = self.reward_PG
        names = self.rewarded_parts[0].rewards
        rewards = {name: _cat(j.rewards[name] for j in self.rewarded_parts) for name in names}
        horizon, tokenizer = self.config.reward.horizon, model.tokenizer
        place = 0
        for rollout in self.rollouts:
            context, ids = rollout.context, rollout.context.token_ids
            for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
                continuation = ids[position : position + horizon]
                shared = {
                    "ordinal": context.ordinal,
                    **({} if context.replay_of is None else {"replay_of": context.replay_of}),
                    "document_id": context.document_id,
                    "title": context.title,
                    "position": position - context.inserted,
                    **_seen(context, tokenizer),
                    "prefix_tail": decode(tokenizer, ids[max(0, position - 48) : position]),
                    "continuation": decode(tokenizer, continuation),
                    "continuation_tokens": token_strings(tokenizer, continuation),
                    "policy_version": rollout.policy_version,
                }
                for g, thought in enumerate(group):
                    content = thought.sampled_ids[: thought.num_tokens]
                    branch = thought_branch(
                        thought.sampled_ids,
                        thought.closed,
                        model.think_open_id,
                        model.think_close_id,
                    )
                    yield {
                        **shared,
                        "thought_index": g,
                        "thought": decode(tokenizer, content),
                        "thought_ids": branch.tolist(),
                        "answer": decode(tokenizer, thought.answer),
                        "rewards": {name: float(r[place, g]) for name, r in rewards.items()},
                        "reward": float(reward[place, g]),
                        "advantage": float(advantage[place, g]),
                        "gain": float(gain[place, g].mean()),
                        "gain_per_token": gain[place, g].tolist(),
                        "num_tokens": thought.num_tokens,
                        "closed": thought.closed,
                        "sampler_logprob": float(thought.sampled_logprobs.sum()),
                    }
                place += 1


def update_metrics(step: int, updates: Sequence[Update]) -> dict[str, float]:
    """Measure the updates of a step; norm and rate are the last one's."""
    return {
        "step": step,
        "grad_norm": updates[-1].grad_norm,
        "lr": updates[-1].lr,
        "skipped": sum(update.skipped for update in updates),
    }


def context_metrics(contexts: Sequence[Context]) -> dict[str, float]:
    """Tell where the contexts of a step stand in the order."""
    return {
        "data/ordinal_first": contexts[0].ordinal,
        "data/visits_max": max(context.visit for context in contexts),
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


def _seen(context: Context, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """The earlier thoughts in the context, where there are any; markers are shown."""
    if not context.seen:
        return {}
    return {
        "seen": [
            {
                "position": seen.position,
                "thought": decode(tokenizer, seen.token_ids),
                "thought_ids": seen.token_ids.tolist(),
            }
            for seen in context.seen
        ]
    }


def _cat(tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([t.cpu() for t in tensors])
