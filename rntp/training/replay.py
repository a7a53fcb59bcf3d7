"""Contexts that are thought at again: those whose thoughts lay furthest apart come back most often.

Kimi k1.5 (2501.12599) draws a problem in proportion to 1 minus its running rate of success, so that
what is solved makes room for what is not. Here a context's usefulness is the spread of its
thoughts' gains: the standard deviation over a group, nats per token, mean over the positions. For
rewards of 0 and 1 that is √(s·(1−s)) of the rate s: like theirs it goes to 0 as a context is
solved, and unlike theirs also where nothing can be guessed, which on ordinary text is most of it,
and where a group teaches nothing. It is of gains, not of rewards, so that every scheme (a random
one, too) sees the same kind of contexts again.

The stream of fresh contexts stays what it is without replay, each ordinal once: a step takes fewer
of them. Step 1 has nothing to draw from and is all fresh.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rntp.config import Config
from rntp.data.corpus import Corpus
from rntp.data.ordinals import FIRST_REPLAY, step_ordinals
from rntp.placement import weighted_sample
from rntp.rng import uniform
from rntp.runtime.ranks import SINGLE_RANK, Ranks
from rntp.types import Context, Page

CAPACITY = 4096  # contexts; the least useful one makes room
NEWEST = 0.5  # share of the newest measurement in a running usefulness
FLOOR = 0.02  # least weight, as a share of the largest: the policy changes, and so does what helps


class Replay:
    """The contexts seen so far that may come back, with their usefulness and visits.

    Each is known by the ordinal of its first visit, at which the stream gives it again. A visit has
    an ordinal of its own, so that positions and thoughts are drawn anew.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._ordinals = torch.full((CAPACITY,), -1, dtype=torch.int64)
        self._useful = torch.zeros(CAPACITY, dtype=torch.float64)
        self._visits = torch.zeros(CAPACITY, dtype=torch.int64)

    def contexts(self, corpus: Corpus, step: int) -> list[Context]:
        """Return the step's contexts, all different: `data.replay_docs` of them, where so many are
        known.

        A function of the seed, the step and what was observed before.
        """
        known = (self._ordinals >= 0).nonzero().flatten()
        if not len(known):
            return []
        useful = self._useful[known]
        weight = useful + FLOOR * useful.max().clamp_min(1e-30)
        # By ordinal, not by place in the table: the draw does not depend on who made room for whom.
        noise = uniform(self._config.run.seed, "replay", self._ordinals[known], step)
        count = min(self._config.data.replay_docs, len(known))
        drawn = known[weighted_sample(weight, noise).topk(count).indices]
        first = FIRST_REPLAY + (step - 1) * self._config.data.replay_docs
        return [
            replace(
                corpus.train[int(self._ordinals[place])],
                ordinal=first + n,
                visit=int(self._visits[place]),
                replay_of=int(self._ordinals[place]),
            )
            for n, place in enumerate(drawn.tolist())
        ]

    def observe(self, pages: Sequence[Page], gain_PG: Tensor) -> None:
        """Take in a step, page by page. gain_PG: nats per continuation token."""
        spread_P = gain_PG.cpu().double().std(dim=1, correction=0)
        for page, spread_K in zip(
            pages, spread_P.split([len(page.positions) for page in pages]), strict=True
        ):
            self._take_in(page, float(spread_K.mean()))

    def forget(self, ordinals: Collection[int]) -> None:
        """Contexts that are not to come back, by the ordinals of their first visits."""
        self._ordinals[torch.isin(self._ordinals, torch.tensor(sorted(ordinals)))] = -1

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {"ordinals": self._ordinals, "useful": self._useful, "visits": self._visits}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for name, kept in self.tensors().items():
            kept.copy_(tensors[name])

    def _take_in(self, page: Page, useful: float) -> None:
        ordinal = page.ordinal if page.replay_of is None else page.replay_of
        places = (self._ordinals == ordinal).nonzero()
        if len(places):
            place = int(places[0])
            useful = NEWEST * useful + (1 - NEWEST) * float(self._useful[place])
        else:
            free = torch.where(self._ordinals < 0, -1.0, self._useful)
            place = int(free.argmin())
            self._ordinals[place] = ordinal
        self._useful[place] = useful
        self._visits[place] = page.visit + 1


def step_contexts(
    config: Config,
    corpus: Corpus,
    replay: Replay | None,
    step: int,
    excluded: Collection[int] = (),
    ranks: Ranks = SINGLE_RANK,
) -> list[Context]:
    """The contexts of step 1, 2, …: the next fresh ordinals, and those that come back; of many
    ranks, this one's share of them.

    excluded: ordinals that the run has set aside; the stream is then the one without them.
    """
    again = replay.contexts(corpus, step) if replay else []

    def share(step: int) -> Sequence[int | Context]:
        return ranks.share([*step_ordinals(config, step, excluded), *again])

    # Only the fresh ones of the share are read, and those of the next step begun.
    mine = share(step)
    ahead = [one for one in share(step + 1) if isinstance(one, int)]
    fresh = corpus.train.take([one for one in mine if isinstance(one, int)], ahead=ahead)
    return [*fresh, *(one for one in mine if not isinstance(one, int))]
