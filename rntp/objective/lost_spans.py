"""What a memory still says of a lost span of the page: read again, behind the memory alone.

MemTrain (2606.03197) has a second task beside what comes next: a part of what was read is left out
and told again from the memory. Here a span of H tokens of the lost part is drawn by the counter,
one a position, and read as every continuation is (see `rntp.model.reading`),

    start · <think> memory </think> · x[a-w:a] · x[a:a+H]

and without the memory. A tree of roots of its own, without gradients.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.forgetful import tail_logp
from rntp.model.thought_tree import memory_branch
from rntp.rng import uniform
from rntp.types import Rollout


def span_start(position: int, window: int, horizon: int, draw: float) -> int | None:
    """Choose where a span of `horizon` tokens begins that lies before the window: an index of the
    page, 1 or more; None where what is lost is shorter. draw: uniform in [0, 1)."""
    places = position - window - horizon
    return 1 + int(draw * places) if places > 0 else None


class LostSpans:
    """Reads lost spans behind the memories of rollouts, under the weights of that moment.

    window, horizon: of the readings, tokens. seed: of the draws. on: whether any scheme asks;
    otherwise nothing is computed.
    """

    def __init__(
        self, model: LanguageModel, *, window: int, horizon: int, seed: int, on: bool
    ) -> None:
        self._model, self._window, self._horizon = model, window, horizon
        self._seed, self._on = seed, on

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Σ log p(span | memory, window before it) − the same without the memory, by the name
        "lost_span": float32 [P, G], nats; 0 where nothing that long is lost."""
        if not self._on:
            return {}
        places = list(self._places(rollouts))
        group = max((len(g) for r in rollouts for g in r.thoughts), default=0)
        gain_PG = torch.zeros(len(places), group, device=self._model.device)
        sequences = list(self._readings(rollouts))
        if sequences and group:
            logp = tail_logp(self._model, sequences, self._horizon).sum(dim=1)
            logp = logp.view(-1, 1 + group)  # of each position, the bare one first
            there = torch.tensor([place is not None for place in places])
            gain_PG[there.to(gain_PG.device)] = logp[:, 1:] - logp[:, :1]
        return {"lost_span": gain_PG}

    def num_tokens(self, rollouts: Sequence[Rollout]) -> int:
        """Tokens of these readings, for the account of the step's work."""
        return sum(len(ids) - 1 for ids in self._readings(rollouts)) if self._on else 0

    def _places(self, rollouts: Sequence[Rollout]) -> Iterator[int | None]:
        """Where the span of each position begins."""
        for rollout in rollouts:
            for position in rollout.positions:
                draw = uniform(self._seed, "lost_span", rollout.context.ordinal, position).item()
                yield span_start(position, self._window, self._horizon, draw)

    def _readings(self, rollouts: Sequence[Rollout]) -> Iterator[Tensor]:
        """Sequences that end with a span: of every position that has one, without a memory and
        behind each."""
        places = self._places(rollouts)
        markers = self._model.think_open_id, self._model.think_close_id
        for rollout in rollouts:
            ids = rollout.context.token_ids
            start = ids.new_tensor([self._model.start_id])
            for group in rollout.thoughts:
                begins = next(places)
                if begins is None:
                    continue
                behind = ids[max(begins - self._window, 0) : begins + self._horizon]
                yield torch.cat([start, behind])
                for thought in group:
                    branch = memory_branch(thought, *markers)
                    yield torch.cat([start, branch, behind])


def open_lost_spans(model: LanguageModel, config: Config) -> LostSpans:
    """Make what the named schemes ask for; it computes nothing where none does."""
    return LostSpans(
        model,
        window=config.reading.window or 0,
        horizon=config.reward.horizon,
        seed=config.run.seed,
        on=any(rewards.NEEDS[name].lost_span for name in config.reward.names),
    )
