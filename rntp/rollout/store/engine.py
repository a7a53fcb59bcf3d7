"""Samplers as an engine: like any other, only that its rollouts come from files.

Version v is the policy after step v. Step k is sampled by weights v with k − 1 − max_age <= v < k:
with max_age 0 by those that the trainer has at its start, so that rollouts are the in-process ones
to the bit. Above 0 the steps k … k + max_age are open while step k is trained, and quick samplers
are max_age updates behind. Nothing is ever thrown away because it came late: an ordinal is sampled
until it is trained, so that slow pages are not lost.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Self

import torch
from torch import Tensor

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.placement import Place
from rntp.rollout import Check, no_check
from rntp.rollout.store.desk import Collected, Desk, Taken
from rntp.rollout.store.files import open_files
from rntp.rollout.store.ledger import Entry, Ledger
from rntp.rollout.store.local import LocalSamplers
from rntp.rollout.store.publishing import Written
from rntp.rollout.store.waiting import Say
from rntp.types import Context, Rollout


class StoreEngine(AbstractContextManager["StoreEngine"]):
    """An `Engine` whose rollouts samplers bring. Use it as a context manager.

    upcoming: the contexts of a later step. placement: tensors of what placing has learnt. keep: the
    step of the oldest checkpoint that a start may go back to. say: tells people a line.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        *,
        upcoming: Callable[[int], Sequence[Context]],
        placement: Callable[[], dict[str, Tensor]],
        keep: Callable[[], int],
        say: Say,
    ) -> None:
        store = config.store
        assert store is not None
        if isinstance(store, Path):
            store.mkdir(parents=True, exist_ok=True)
        self._config, self._say = config, say
        self._upcoming, self._placement, self._keep = upcoming, placement, keep
        files = open_files(store)
        self._desk = Desk(files, config, model, say, lambda: monotonic(), self._between_looks)
        self._ledger = Ledger(config.run.dir)
        self._local = LocalSamplers(
            store,
            config.rollout.samplers.start,
            config.run.dir / "samplers",
            lambda line: say(line, "warning"),
        )
        self._metrics: dict[str, float | str] = {}
        self._published: dict[str, float] = {}
        self._newest = -1
        self._opened = False
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.callback(self._local.close)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """The rollouts of step `policy_version` + 1; see `Engine`. Samplers place by what travels
        with the weights, and `place` is not asked."""
        config, step = self._config, policy_version + 1
        if not self._opened:
            self._desk.open(self._ledger.run_id(), check)
            self._opened = True
        if self._newest != policy_version:
            published = self._desk.publish(policy_version, self._placement(), check)
            self._newest, self._published = policy_version, publication_metrics(*published)
        last = min(step + config.rollout.samplers.max_age, config.run.steps)
        steps = {step: contexts, **{s: self._upcoming(s) for s in range(step + 1, last + 1)}}
        self._desk.offer(policy_version, steps, check)
        rollouts = self._stored(step, check)
        if rollouts is None:
            self._local.watch()
            rollouts = self._collected(step, self._desk.collect(step, check))
        if config.rollout.samplers.max_age:
            self._local.watch()
        self._desk.tidy(self._keep(), policy_version - config.rollout.samplers.max_age - 1)
        return rollouts

    def finish(self) -> None:
        """Tell samplers that the run is done."""
        if self._opened:
            self._desk.finish(self._newest, no_check)

    def metrics(self) -> dict[str, float | str]:
        """What the step's record says of its rollouts."""
        return {**self._metrics, **self._published}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps: the files of the last step, and the weights that rollouts of
        the next may be of."""
        last = self._ledger.last
        return {
            "versions": {str(v): digest for v, digest in self._desk.versions.items()},
            "step": last.step if last else 0,
            "files": [list(file) for file in last.files] if last else [],
        }

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take back what `facts` gave."""
        found = facts.get("versions", {})
        self._desk.versions.update({int(v): str(digest) for v, digest in found.items()})

    def _stored(self, step: int, check: Check) -> list[Rollout] | None:
        """What an earlier start has used for this step, if all of it is still there."""
        entry = self._ledger.read(step)
        if entry is None or entry.work != self._desk.work(step):
            return None
        rollouts = self._desk.read(step, [Taken(*file) for file in entry.files], check)
        if rollouts is None:
            self._say(
                f"stored rollouts of step {step} have changed: it is sampled again", "warning"
            )
            return None
        self._ledger.last = entry
        self._metrics = entry.metrics
        return rollouts

    def _collected(self, step: int, found: Collected) -> list[Rollout]:
        """Write down what a step uses before it is used, and hand it over."""
        order = sorted(found.rollouts)
        rollouts = [rollout for part in order for rollout in found.rollouts[part]]
        files = tuple(found.taken[part] for part in order)
        metrics: dict[str, float | str] = {
            **age_metrics([step - 1 - r.policy_version for r in rollouts]),
            "rollout/again": found.attempts,
            "rollout/refused": found.refused,
            "rollout/canary": found.canary,
        }
        entry = Entry(step, self._desk.work(step), tuple(map(tuple, files)), metrics)
        self._ledger.write(entry)
        self._metrics = entry.metrics
        return rollouts

    def _between_looks(self, seconds: float) -> None:
        self._local.watch()
        sleep(seconds)


def publication_metrics(written: Written, seconds: float) -> dict[str, float]:
    """What a record says of the weights that its step has published."""
    found = {
        "rollout/weights_bytes": written.size,
        "rollout/weights_delta": float(written.how == "delta"),
        "rollout/publish_s": seconds,
    }
    if written.changed is not None:
        found["rollout/weights_changed"] = written.changed
    return found


def age_metrics(ages: Sequence[int]) -> dict[str, float]:
    """Mean and most of the ages of rollouts, and the share of each age."""
    counts = torch.bincount(torch.tensor(ages))
    shares = {
        f"rollout/age/{age}": int(count) / len(ages)
        for age, count in enumerate(counts.tolist())
        if count
    }
    return {
        "rollout/age_mean": sum(ages) / len(ages),
        "rollout/age_max": max(ages),
        **shares,
    }
