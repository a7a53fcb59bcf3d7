"""What is measured: one step's contexts, positions and thoughts, and the config around them."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch

from rntp.bench.sizes import Sizes
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.packed_weights import packed_weights, packing_pays
from rntp.objective.forward import build_tree, forward
from rntp.objective.loss import loss
from rntp.objective.quantities import Counts, OtherLogprobs, loss_reads
from rntp.objective.rewards_and_advantages import compute_rewards, sampler_logp
from rntp.rng import uniform
from rntp.rollout.engine import open_engine
from rntp.types import Context, Rollout


@dataclass(frozen=True)
class Job:
    """A step of these sizes with a model, in rntp's way: one tree, one forward.

    The pages are random tokens: how long a step takes depends on sizes alone. The baseline and the
    next-token term are off, so that the usual loop, which has neither, minimises the same loss.

    continuation_weight: of the loss's term on continuations; 0 is the policy gradient alone (RLP,
    2510.01265), all that other trainers have.
    """

    model: LanguageModel
    sizes: Sizes
    continuation_weight: float = 0.0

    @cached_property
    def config(self) -> Config:
        sizes = self.sizes
        return Config.model_validate(
            {
                "run": {"name": "bench", "dir": "bench", "steps": 1},
                "model": {"spec": self.model.spec},
                "data": {
                    "source": "bench",
                    "context_tokens": sizes.context,
                    "docs_per_step": sizes.docs,
                },
                "placement": {"policy": "even", "positions_per_doc": sizes.positions},
                "thought": {
                    "thoughts_per_position": sizes.thoughts,
                    "thought_tokens": sizes.budget,
                },
                "reading": {"window": None if sizes.window < 0 else sizes.window},
                "reward": {"scheme": "logprob", "horizon": sizes.horizon, "shadows": []},
                "objective": {
                    "continuation_weight": self.continuation_weight,
                    "ntp_weight": 0.0,
                },
                "rollout": {"docs_per_batch": sizes.docs},
            }
        )

    @cached_property
    def contexts(self) -> list[Context]:
        vocabulary, length = self.model.vocabulary, self.sizes.context
        found = []
        for ordinal in range(self.sizes.docs):
            index = torch.arange(length)
            draw = uniform(0, "bench page", torch.full_like(index, ordinal), index, index * 0, 0)
            ids = (draw.double() * vocabulary).long().clamp_max(vocabulary - 1)
            found.append(Context(ordinal, f"bench {ordinal}", ids))
        return found

    @property
    def positions(self) -> tuple[int, ...]:
        """Evenly spaced, from the second token on: a mean prefix of about half a page; with a
        window from the first token on that loses one."""
        sizes = self.sizes
        first, last = max(sizes.window, 0) + 1, sizes.context - sizes.horizon
        return tuple(
            first + (2 * k + 1) * (last - first) // (2 * sizes.positions)
            for k in range(sizes.positions)
        )

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """The thoughts that all providers train on; drawn once, in the type of the first use."""
        return self.sample()

    def sample(self) -> list[Rollout]:
        """The rollouts of the step: pages read once, all branches in lock-step."""
        engine = open_engine(self.model, self.config, thoughts=self.sizes.thoughts)
        positions = self.positions
        return engine.sample(self.contexts, lambda context, next_token: positions)

    def step(self) -> float:
        """All of it, up to the gradients; the loss in nats."""
        hf = self.model.hf
        with packed_weights(hf) if packing_pays(hf, self.sizes.budget) else nullcontext():
            return self.backward(self.sample())

    def backward(self, rollouts: list[Rollout]) -> float:
        """Forward, rewards, advantages, loss and backward; the loss in nats."""
        tree = build_tree(self.model, rollouts, self.sizes.horizon, loss_reads(self.config))
        outputs = forward(self.model, tree, temperature=self.config.thought.temperature)
        rewarded = compute_rewards(outputs, tree, rollouts, self.config)
        others = OtherLogprobs(sampler_logp(rollouts).to(self.model.device))
        counts = Counts.of(rollouts, self.sizes.horizon)
        total = loss(outputs, tree, rewarded, counts, self.config, others).total
        total.backward()
        return float(total.detach())
