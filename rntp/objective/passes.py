"""The forwards of a step, over one microbatch at a time."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.microbatches import Batch, microbatches
from rntp.model.routing import routers
from rntp.model.thought_tree import ThoughtTree
from rntp.model.tokenizer import decode
from rntp.objective.forward import build_tree, forward, forward_with_gradients
from rntp.objective.judge_model import open_judge
from rntp.objective.lost_spans import open_lost_spans
from rntp.objective.outside import outside_verdicts
from rntp.objective.quantities import (
    ForwardOutputs,
    Known,
    OtherLogprobs,
    RewardsAndAdvantages,
    loss_reads,
)
from rntp.objective.reference_model import Reference
from rntp.objective.rewards_and_advantages import compute_rewards, sampler_logp
from rntp.types import Rollout


class Passes:
    """Runs the model over the microbatches of a step, as the config's rewards and loss want it.

    It knows of no other rank and writes nothing.
    """

    def __init__(self, model: LanguageModel, config: Config, reference: Reference | None) -> None:
        self.config = config
        self._model, self._reference = model, reference
        self._reads = loss_reads(config)
        self._watches = bool(routers(model.hf))
        self._decode = partial(decode, model.tokenizer)
        judge = open_judge(model, config, reference.model if reference else None)
        self._asked = judge, open_lost_spans(model, config)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._model.device

    def microbatches(self, rollouts: list[Rollout]) -> list[Batch]:
        """Cut rollouts into parts that fit one forward each."""
        return microbatches(
            rollouts,
            tokens=self.config.parallel.tokens_per_microbatch,
            horizon=self.config.reward.horizon,
            reads=self._reads,
            shares=self._model.shares,
        )

    def tree(self, batch: Batch) -> ThoughtTree:
        """Build the token tree of a microbatch."""
        return build_tree(self._model, batch, self.config.reward.horizon, self._reads)

    def run(self, tree: ThoughtTree, batch: Batch, known: Known | None = None) -> Known:
        """Compute log-probs, with gradients for what the loss reads, and what thoughts are worth.

        known: of an earlier pass over the same thoughts, whose rewards and advantages stay.
        """
        if known is None:
            outputs = self._forward(tree)
            return (outputs, *self._rewards(outputs, tree, batch))
        earlier, rewarded, others = known
        if self._reads.continuation:
            return self._forward(tree), rewarded, others
        outputs = forward_with_gradients(
            self._model,
            batch,
            earlier,
            rewarded.live_P(self.config),
            self.config.reward.horizon,
            self._reads,
            temperature=self.config.thought.temperature,
            watch=self._watches,
        )
        return outputs, rewarded, others

    def _forward(self, tree: ThoughtTree) -> ForwardOutputs:
        return forward(
            self._model,
            tree,
            temperature=self.config.thought.temperature,
            with_collision=any(rewards.NEEDS[n].collision for n in self.config.reward.names),
            watch=self._watches,
        )

    def _rewards(
        self, outputs: ForwardOutputs, tree: ThoughtTree, batch: Batch
    ) -> tuple[RewardsAndAdvantages, OtherLogprobs]:
        """What thoughts are worth, and how likely they were under the other weights at hand."""
        config, reference_PH, reference_M = self.config, None, None
        if self._reference and config.objective.kl_weight > 0:
            temperature = config.thought.temperature
            reference_PH, reference_M = self._reference.on_tree(tree, temperature)
        elif self._reference and config.baseline.rereads:
            reference_PH = self._reference.no_think(
                batch, config.reward.horizon, config.reading.window
            )
        rewarded = compute_rewards(
            outputs,
            tree,
            batch,
            config,
            reference_PH,
            reference_M,
            decode=self._decode,
            verdicts=self._verdicts(batch),
        )
        return rewarded, OtherLogprobs(sampler_logp(batch).to(self._model.device), reference_M)

    def num_asked(self, rollouts: Sequence[Rollout]) -> int:
        """Count the tokens of the trees beside the step's own: the judge's, of lost spans."""
        return sum(asked.num_tokens(rollouts) for asked in self._asked)

    def _verdicts(self, batch: Batch) -> dict[str, Tensor]:
        """What others than the continuation say of thoughts, by name: [P, G]."""
        found = {name: said for asked in self._asked for name, said in asked(batch).items()}
        return {**found, **outside_verdicts(batch, self.config)}
