"""The whole config: its sections, what follows from them, and how it is read and written."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    PrivateAttr,
    model_validator,
)

from rntp.config import files, identity, load
from rntp.config.correction import Correction, correction_of
from rntp.config.evaluation import Evaluation
from rntp.config.optim import Optim
from rntp.config.rollout import RolloutSection
from rntp.config.rules import RULES, broken_rules
from rntp.config.sections import (
    Baseline,
    Checkpoint,
    Data,
    Log,
    Model,
    Objective,
    Parallel,
    Placement,
    Reading,
    Reward,
    Run,
    Section,
    Thought,
)
from rntp.config.warned import WARNINGS


class Config(Section):
    """The whole configuration of a run."""

    run: Run
    model: Model
    data: Data
    placement: Placement
    thought: Thought
    reading: Reading = Reading()
    reward: Reward
    baseline: Baseline = Baseline()
    objective: Objective = Objective()
    optim: Optim = Optim()
    rollout: RolloutSection = RolloutSection()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()
    log: Log = Log()
    parallel: Parallel = Parallel()
    _renamed: tuple[str, ...] = PrivateAttr(())

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, over its `base:` if it names one, and apply `section.field=value`.

        Raises ConfigError with one line a mistake; nothing is read or written besides the file.
        """
        return cls.parse(files.read(Path(path)), overrides, source=str(path))

    @classmethod
    def parse(cls, raw: object, overrides: Sequence[str] = (), source: str = "config") -> Self:
        """Validate a nested dict; see `load`."""
        config, renamed = load.parse(cls, raw, overrides, source)
        config._renamed = tuple(renamed)
        return config

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if broken := list(broken_rules(self, RULES)):
            raise ValueError("\n  ".join(broken))
        return self

    @property
    def branch_tokens(self) -> int:
        """Most tokens of one branch in the tree: markers, thought, continuation, answer. The last
        of a continuation and of an answer predict nothing. With a reading window the thought is
        there twice: as it was drawn, without its last marker, and as it is read."""
        if self.reading.window is not None:
            return self.learning_branch_tokens + self.memory_tokens + 2 + self.bare_tokens
        ends = self.reward.horizon - 1 + max(self.thought.answer_tokens - 1, 0)
        return self.memory_tokens + 2 + ends

    @property
    def learning_branch_tokens(self) -> int:
        """Those of them that have gradients where the loss has no term on continuations."""
        if self.thought.answer_tokens:
            return self.branch_tokens - (self.reward.horizon - 1)
        return self.memory_tokens

    @property
    def memory_tokens(self) -> int:
        """Most tokens between the markers of a thought: those that are drawn and those that tools
        give."""
        return self.thought.thought_tokens + self.thought.tools.most_given

    @property
    def bare_tokens(self) -> int:
        """Most tokens of a reading without a thought, where there is a reading window, else 0:
        start token, window, continuation. Earlier thoughts that stand in the window come along."""
        if self.reading.window is None:
            return 0
        inserted = 0
        if self.placement.interleaved:
            inserted = self.longest_context - self.data.context_tokens
        return 1 + self.reading.window + inserted + self.reward.horizon - 1

    @property
    def mixes_pages(self) -> bool:
        """Whether predictions with a thought are mixed with those of the page as it stands, and not
        with those behind a window of it."""
        return bool(self.reading.mixing) and self.reading.window is None

    @property
    def earliest_position(self) -> int:
        """Tokens before a position at least: with a reading window one of them is lost, for
        otherwise a memory has nothing to tell, unless a tool brings what the page does not have;
        all of a piece where pages are read by pieces."""
        if self.reading.piece is not None:
            return self.reading.piece
        least = self.placement.min_prefix_tokens
        if self.reading.window is None or {*self.thought.tools.use} - {"recall"}:
            return least
        return max(least, self.reading.window + 1)

    @property
    def reference_weights(self) -> Literal["frozen", "ema"] | None:
        """The second set of weights that the run keeps, for baseline, KL term and judge."""
        weights = self.baseline.weights
        if weights == "frozen" or weights == "ema":
            return "frozen" if weights == "frozen" else "ema"
        if self.objective.kl_weight > 0:
            return "ema" if self.objective.kl.get("reference") == "ema" else "frozen"
        return "frozen" if self.reward.judges.itself == "frozen" else None

    @property
    def ema_decay(self) -> float:
        """Share of the moving average that stays in a step, where the run keeps one."""
        of = self.baseline.weights if self.baseline.weights == "ema" else self.objective.kl
        return float(of.get("decay"))

    @property
    def longest_context(self) -> int:
        """Most tokens of a context, with the thoughts that stand in it if they are interleaved,
        or the memory before it where a page is read by pieces."""
        earlier = self.placement.positions_per_doc - 1 if self.placement.interleaved else 0
        longest = self.memory_tokens + 2
        return max(self.data.context_tokens + earlier * longest, self.link_tokens)

    @property
    def link_tokens(self) -> int:
        """Most tokens that stand in the context of a later link of a chain: start token, memory,
        piece, continuation; 0 where pages are not read by pieces."""
        if self.reading.piece is None:
            return 0
        return 1 + self.memory_tokens + 2 + self.reading.piece + self.reward.horizon

    @property
    def repeated_positions(self) -> int:
        """How many of a context's K are more thoughts at positions that it has already."""
        share = self.placement.policy.get("repeats") or 0.0
        return int(float(share) * self.placement.positions_per_doc + 1e-9)

    @property
    def reads_again(self) -> bool:
        """Whether each position of a page has a context of its own: the page with earlier thoughts
        in it, or a piece of it behind a memory."""
        return self.placement.interleaved or self.reading.piece is not None

    @property
    def sampled_thoughts(self) -> int:
        """Thoughts of a group that are sampled: in a chain one of them is the memory before."""
        return self.thought.thoughts_per_position - (self.reading.piece is not None)

    @property
    def budget_tokens(self) -> int:
        """Most tokens that the sampler draws for one thought and its answer."""
        return self.thought.thought_tokens + self.thought.answer_tokens

    @property
    def correction(self) -> Correction:
        """How tokens are weighted that older weights have drawn."""
        return correction_of(self)

    @property
    def store(self) -> Path | str | None:
        """Where trainer and samplers meet; None where the trainer samples itself."""
        if self.rollout.samplers.store is None and self.rollout.samplers.start:
            return self.run.dir / "store"
        return self.rollout.samplers.store

    @property
    def contexts_per_lease(self) -> int:
        """Most contexts that a sampler takes at a time."""
        if self.rollout.samplers.contexts:
            return self.rollout.samplers.contexts
        share = -(-self.data.docs_per_step // max(self.rollout.samplers.start, 1))
        return min(self.rollout.docs_per_batch, share)

    @property
    def span_tokens(self) -> int:
        """Longest sequence that the model ever sees, in positions."""
        # A position leaves room for the continuation in the context, not for a longer answer.
        beyond = max(0, self.thought.answer_tokens - self.reward.horizon)
        longest = self.memory_tokens + 2
        return self.longest_context + longest + beyond

    @property
    def min_document_tokens(self) -> int:
        """A shorter document cannot hold the positions of a context."""
        if self.reading.piece is not None:
            return self.most_positions * self.reading.piece + self.reward.horizon
        return self.earliest_position + self.reward.horizon + self.most_positions - 1

    @property
    def loses_context(self) -> bool:
        """Whether a reading window is shorter than contexts; thoughts then carry what it lost."""
        window = self.reading.window
        return window is not None and window < self.data.context_tokens

    @property
    def most_positions(self) -> int:
        """Positions of one context in training or in evaluation, whichever has more."""
        return max(self.placement.positions_per_doc, self.evaluation.positions_per_doc)

    def warnings(self) -> Iterator[str]:
        """Tell what is allowed but probably not meant, and old names with their new ones."""
        yield from self._renamed
        yield from broken_rules(self, WARNINGS)

    def to_yaml(self) -> str:
        """The resolved configuration, every field written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """List the fields that decide what is trained; see `rntp.config.identity`."""
        return identity.trained(self)

    def digest(self) -> str:
        """Hash `identity`: SHA-256, hexadecimal."""
        return identity.digest(identity.trained(self))

    def measured(self) -> dict[str, Any]:
        """List the fields that decide what is measured of what is trained."""
        return identity.measured(self)

    def evaluation_digest(self) -> str:
        """Hash how evaluations are made (SHA-256, hexadecimal): results of one can be compared."""
        return identity.digest(identity.measured(self)["evaluation"])
