"""What the trainer asks of rollouts before it trains on them: a reason, or nothing.

Bytes and origin are the seal's business; this is whether they are what was asked for. Whatever gets
through may have come from a stranger, so that nothing here is taken on trust.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.rollout.store.layout import Unit
from rntp.rollout.store.sealed import Refused
from rntp.rollout.store.weights import canary_distance
from rntp.rollout.vllm.weights import canary_bound
from rntp.types import Context, Rollout, Thought


@dataclass(frozen=True)
class Expected:
    """What rollouts of this run have to be.

    vocabulary: tokens that can be drawn. close_id: of the think marker. versions: digests of the
    weights that the run has published, by version. canaries: likewise.
    """

    config: Config
    vocabulary: int
    close_id: int
    dtype: torch.dtype
    versions: Mapping[int, str]
    canaries: Mapping[int, Tensor]

    def age(self, unit: Unit, facts: Mapping[str, Any]) -> int:
        """Updates between the weights that sampled and those that train. Raises Refused."""
        config, version = self.config, facts.get("version")
        if (facts.get("step"), facts.get("work"), facts.get("part")) != (
            unit.step,
            unit.work,
            unit.part,
        ) or facts.get("run") != config.digest():
            raise Refused("foreign", "they are of another part, step or run")
        if not isinstance(version, int) or not 0 <= version < unit.step:
            raise Refused("malformed", f"policy version {version} at step {unit.step}")
        age = unit.step - 1 - version
        if age > config.rollout.samplers.max_age:
            raise Refused(
                "stale",
                f"{age} updates old, rollout.samplers.max_age is {config.rollout.samplers.max_age}",
            )
        if self.versions.get(version) != facts.get("weights"):
            raise Refused("weights", f"no weights of this run for version {version}")
        return age

    def canary(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> float:
        """Distance of the sampler's canary from that of the version, nats. Raises Refused."""
        known = self.canaries.get(int(facts["version"]))
        told = tensors.get("canary")
        if known is None:
            return 0.0
        if told is None or told.shape != known.shape:
            raise Refused("malformed", "there is no canary")
        distance, bound = canary_distance(told, known), canary_bound(self.config, self.dtype)
        if not distance <= bound:
            raise Refused(
                "weights",
                f"the sampler's canary lies {distance:.3g} nats a token from the trainer's, "
                f"{bound:g} at most",
            )
        return distance

    def check(self, rollouts: Sequence[Rollout], contexts: Sequence[Context]) -> None:
        """Raise Refused unless there is for every context what the config asks for."""
        config = self.config
        places = config.placement.positions_per_doc
        each = places if config.placement.interleaved else 1
        wanted = [c.ordinal for c in contexts for _ in range(each)]
        if [r.context.ordinal for r in rollouts] != wanted:
            raise Refused("malformed", "they are not of the contexts of this part, in order")
        for rollout in rollouts:
            self._check_one(rollout, places // each)
        self._check_thoughts([t for r in rollouts for group in r.thoughts for t in group])

    def _check_one(self, rollout: Rollout, places: int) -> None:
        config, positions = self.config, rollout.positions
        last = len(rollout.context) - config.reward.horizon
        first = config.earliest_position + rollout.context.inserted
        new = places - config.repeated_positions
        ascend = list(positions) == sorted(positions) and len(set(positions)) >= new
        if len(positions) != places or not ascend:
            raise Refused("malformed", f"{len(positions)} positions where {places} were wanted")
        if any(not first <= p <= last for p in positions):
            raise Refused("malformed", "a position that no thought may have")
        if not (torch.isfinite(rollout.entropy).all() and torch.isfinite(rollout.nll).all()):
            raise Refused("malformed", "entropy or loss that is not finite")
        for group in rollout.thoughts:
            if len(group) != config.thought.thoughts_per_position:
                raise Refused("malformed", f"{len(group)} thoughts at a position")

    def _check_thoughts(self, thoughts: Sequence[Thought]) -> None:
        """All of a result at once: thousands of them come with a step."""
        config = self.config
        ids = torch.cat([part for t in thoughts for part in (t.sampled_ids, t.answer_ids)])
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocabulary):
            raise Refused("malformed", "a token that there is not")
        answers = max((len(t.answer_ids) for t in thoughts), default=0)
        if answers > config.thought.answer_tokens:
            raise Refused("malformed", f"an answer of {answers} tokens")
        given = [t.num_given if len(t.given) else 0 for t in thoughts]
        if max(given, default=0) > config.thought.tools.most_given:
            raise Refused("malformed", "more than tools may give")
        drawn = [len(t.sampled_ids) - n for t, n in zip(thoughts, given, strict=True)]
        for count in drawn:
            if not 1 <= count <= config.thought.thought_tokens:
                raise Refused("malformed", f"a thought of {count} tokens")
        own = torch.cat(
            [torch.zeros(0, dtype=torch.int64), *(t.drawn(t.sampled_ids) for t in thoughts)]
        )
        ends = torch.tensor(drawn, dtype=torch.int64).cumsum(0) - 1
        closed = torch.tensor([t.closed for t in thoughts], dtype=torch.bool)
        closes = (own == self.close_id).nonzero().flatten()
        if not torch.equal(closes, ends[closed]):
            raise Refused("malformed", "a thought that does not end where it says")
        logprobs = torch.cat(
            [
                torch.zeros(0),
                *(p for t in thoughts for p in (t.sampled_logprobs, t.answer_logprobs)),
            ]
        )
        if not (torch.isfinite(logprobs).all() and (logprobs <= 1e-3).all()):
            raise Refused("malformed", "log-probs that are none")
