"""What a page is to the current model: thoughts at some of its positions, scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.pages import score_pages
from rntp.model import LanguageModel, cast_parameters
from rntp.model.opening import open_model
from rntp.model.tokenizer import encode, prefix_ids
from rntp.placement import Place
from rntp.placement.placer import placer
from rntp.placement.records import RECORDS
from rntp.rollout import no_check
from rntp.rollout.engine import open_engine
from rntp.run import checkpoint
from rntp.run.trained import take_weights
from rntp.types import Context, NextTokenStats, Rollout

PURPOSE = "grow"


@dataclass(frozen=True)
class Prober:
    """Measures pages with a run's model and with the one that it was before.

    earlier: its weights at half the steps or before. positions, thoughts: of a page, of a position.
    """

    config: Config
    model: LanguageModel
    earlier: LanguageModel
    policy: str
    positions: int
    thoughts: int

    @torch.no_grad()
    def __call__(self, texts: Mapping[int, str]) -> dict[int, dict[str, float] | None]:
        """The figures `WORTH` of texts by number, nats a token (see `rntp.grow.frontier.Worth`);
        None for a text that is too short for the run.

        A text's figures depend on its number and itself, up to rounding. Longer ones are read up to
        data.context_tokens.
        """
        contexts = [c for n, text in texts.items() if (c := self._context(n, text)) is not None]
        found: dict[int, dict[str, float] | None] = dict.fromkeys(texts)
        if not contexts:
            return found
        place = placer(
            self.config,
            self.policy,
            PURPOSE,
            count=self.positions,
            tokenizer=self.model.tokenizer,
        )
        now = self._measure(self.model, contexts, place)
        places = {n: rollout.positions for n, (rollout, _) in now.items()}

        def same(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
            return places[context.ordinal]

        before = self._measure(self.earlier, contexts, same)
        elsewhere = self._gains(self.model, [moved(rollout) for rollout, _ in now.values()])
        for (number, (_, gain_PG)), elsewhere_PG in zip(now.items(), elsewhere, strict=True):
            found[number] = worth(gain_PG, before[number][1], elsewhere_PG)
        return found

    def _context(self, number: int, text: str) -> Context | None:
        ids = encode(self.model.tokenizer, text)
        prefix = torch.tensor(prefix_ids(self.model.tokenizer), dtype=torch.int64)
        least = max(
            self.config.min_document_tokens,
            self.config.earliest_position + self.config.reward.horizon + self.positions,
        )
        if len(ids) < least:
            return None
        ids = torch.cat([prefix, ids])[: self.config.data.context_tokens]
        return Context(number, f"page-{number}", ids)

    def _measure(
        self, model: LanguageModel, contexts: Sequence[Context], place: Place
    ) -> dict[int, tuple[Rollout, Tensor]]:
        """By ordinal: the rollout, and gains of its thoughts, nats a token, float64 [P, G]."""
        engine = open_engine(model, self.config, thoughts=self.thoughts, purpose=PURPOSE)
        size = self.config.rollout.docs_per_batch
        found: dict[int, tuple[Rollout, Tensor]] = {}
        for first in range(0, len(contexts), size):
            rollouts = engine.sample(contexts[first : first + size], place, no_check)
            for rollout, gain_PG in zip(rollouts, self._gains(model, rollouts), strict=True):
                found[rollout.context.ordinal] = rollout, gain_PG
        return found

    def _gains(self, model: LanguageModel, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """Of the thoughts of each page, nats a token, float64 [P, G]."""
        pages = score_pages(model, rollouts, self.config, no_check)
        return [torch.stack([_gains(at) for at in page["positions"]]) for page in pages]


def worth(now_PG: Tensor, before_PG: Tensor, elsewhere_PG: Tensor) -> dict[str, float]:
    """The figures `WORTH` of a page from the gains of its thoughts, nats a token, [P, G]: now,
    at an earlier checkpoint, and of the thoughts of other positions."""
    gain = float(now_PG.mean())
    return {
        "gain": gain,
        "spread": float(now_PG.std(dim=1).mean()),
        "change": gain - float(before_PG.mean()),
        "elsewhere": float(elsewhere_PG.mean()),
    }


def moved(rollout: Rollout) -> Rollout:
    """Thoughts at the page's next position each. Of the page alone: which pages are measured
    beside it does not matter, and all that is known of the page is before the model anyway."""
    return replace(rollout, thoughts=(*rollout.thoughts[-1:], *rollout.thoughts[:-1]))


def _gains(at: dict[str, Any]) -> Tensor:
    empty = torch.tensor(at["logp_empty"], dtype=torch.float64)
    think = torch.tensor([t["logp_think"] for t in at["thoughts"]], dtype=torch.float64)
    return (think - empty).mean(dim=1)


def check_run(config: Config, policy: str) -> str:
    """The placement policy to think by. Raises ConfigError for a run whose pages are not growing
    ones, and for a policy that goes by what pages from elsewhere do not have."""
    if config.thought.thoughts_per_position == 0 or config.thought.source == "pause":
        raise ConfigError("the run does not think, so no page is worth more than another to it")
    if config.reading.window is not None or config.thought.tools.use:
        raise ConfigError(
            "rntp data grow measures thoughts read in sight of the whole context and without "
            "tools; the run has reading.window or thought.tools"
        )
    name = policy or str(config.placement.policy)
    if name in (*RECORDS, "by_class", "oracle"):
        raise ConfigError(
            f"placement {name} goes by a run's record or by labels, which pages of a frontier do "
            "not have; set `placement: random` in the frontier"
        )
    return name


def earlier_step(run_dir: Path, step: int) -> int:
    """The newest whole checkpoint at half of `step` or before; 0, the start, without one."""
    steps = [s for s, _ in checkpoint.committed(run_dir / "checkpoints") if 2 * s <= step]
    return max(steps, default=0)


def open_at(config: Config, run_dir: Path, step: int) -> LanguageModel:
    """The run's model after `step`; 0 is the one that it began with. Raises CheckpointError."""
    model = open_model(config)
    if step:
        path = checkpoint.choose(run_dir / "checkpoints", step, lambda text: None)
        take_weights(model, checkpoint.load(path, "weights"))
    cast_parameters(model.hf, getattr(torch, config.model.dtype))
    return model
