"""What a run is between two steps: what its checkpoints hold, and how a start takes it back."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.data.corpus import Corpus
from rntp.data.ordinals import next_ordinal
from rntp.data.state import DataState, Segment, known_damage, segments
from rntp.errors import CheckpointError
from rntp.model import LanguageModel
from rntp.model.tokenizer import tokenizer_digest
from rntp.run import checkpoint
from rntp.run.facts import CheckpointState, RunFacts, StartFacts
from rntp.run.log import NoLog, RunLog
from rntp.runtime.provenance import device_name
from rntp.runtime.ranks import Ranks
from rntp.training.followers import Followers
from rntp.training.guards import Guards
from rntp.training.optimizer import Optimizer
from rntp.training.sampling import Sampling
from rntp.training.saver import Saver

# Files that checkpoints did not always have: who begins anew where they are missing.
_LATER = ("alarms", "gate")


class RunState:
    """The state of one run. segments: the steps that had the same data, as the manifest lists them.

    accept_data_change: go on where the corpus is another than that of the checkpoint.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        corpus: Corpus,
        optimizer: Optimizer,
        followers: Followers,
        guards: Guards,
        ranks: Ranks,
        sampling: Sampling,
        *,
        accept_data_change: bool,
    ) -> None:
        self.segments: list[Segment] = []
        self._config, self._model, self._corpus = config, model, corpus
        self._optimizer, self._followers, self._guards = optimizer, followers, guards
        self._ranks, self._sampling, self._accept = ranks, sampling, accept_data_change
        self._damage_told = 0

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """List what a checkpoint keeps, by stem and by name."""
        kept = self._followers.kept(self._guards.alarms)
        others = {stem: part.tensors() for stem, part in kept.items()}
        return {
            "weights": self._optimizer.masters,
            "moments": self._optimizer.moments(),
            **others,
        }

    def open_saver(self, done: int, log: RunLog | NoLog) -> Saver:
        """Make what writes the checkpoints. done: steps of which the newest is."""
        section = self._config.checkpoint
        self._optimizer.moments()  # made before the first step, as a resume finds them
        return Saver(
            self._config.run.dir / "checkpoints",
            section.keep,
            self._ranks,
            asynchronous=bool(section.asynchronous),
            copies_bytes=section.copies_bytes,
            log=log,
            saved=done,
        )

    def save(self, step: int, saver: Saver, check: Callable[[], None], *, wait: bool) -> None:
        """Save the state after a step; see `Saver.save`. check: called often; raises to stop."""
        excluded = self._guards.excluded
        state: CheckpointState = {
            # Between two steps nothing is in flight: all ordinals before this one are done.
            "next_ordinal": next_ordinal(self._config, step, excluded),
            "set_aside": sorted(excluded),
            "skipped_in_a_row": self._guards.skipped_in_a_row,
            "config_digest": self._config.digest(),
            "data_digest": self._corpus.manifest.digest,
            "tokenizer_digest": tokenizer_digest(self._model.tokenizer),
            "data": self._data_state(step, excluded, check=check).as_dict(),
            "segments": self.segments,
            "reference": self._config.reference_weights,
            "torch": torch.__version__,
        }
        if found := self._sampling.facts():
            state["sampled"] = found
        saver.save(step, self.tensors(), state, wait=wait)

    def restore(self, log: RunLog | NoLog, check: Callable[[], None]) -> int:
        """Take over the newest whole checkpoint; the steps that it has done, 0 where there is none.

        Raises CheckpointError with what differs where the run cannot go on from it.
        """
        config, guards, ranks = self._config, self._guards, self._ranks
        folder = config.run.dir / "checkpoints"

        def warn(text: str) -> None:
            log.message(text, "warning")

        ranks.decide(lambda: checkpoint.clear_leftovers(folder), "start")
        guards.load_rollbacks()
        newest = checkpoint.newest_valid(folder, warn, ranks=ranks, check=check)
        if newest is None:
            log.rewind(0)
            self.segments = segments({}, self._data_state(0, ()), 0, newest, accept=True)
            return 0
        state = checkpoint.load_state(newest)
        step, excluded = int(state["step"]), state.get("set_aside", [])
        # A source that is read as it comes is read again up to here.
        other = ranks.agree(lambda: self._corpus.catch_up(state, check), "start")
        now = self._data_state(step, excluded)
        self.segments = segments(state, now, step, newest, accept=self._accept, more=other)
        self._corpus.train.stream.know(known_damage(state))
        if state["next_ordinal"] != next_ordinal(config, step, excluded):
            raise CheckpointError(
                f"{newest} was trained with another data.docs_per_step or data.replay_docs"
            )
        self._load_tensors(newest, log)
        guards.restore(state)
        self._sampling.restore(state.get("sampled", {}))
        if self._followers.replay:
            self._followers.replay.forget(guards.no_replay)
        log.rewind(step)
        log.message(f"resuming from {newest}: {step} of {config.run.steps} steps done")
        return step

    @property
    def new_damage(self) -> int:
        """Documents that this rank has set aside since the ranks told each other."""
        return len(self._corpus.train.damaged) - self._damage_told

    def share_damage(self, log: RunLog | NoLog, *, found: bool) -> int:
        """Count the documents set aside so far, by whichever rank; every rank then knows them.

        found: whether any rank has `new_damage`; without, nobody has to ask.
        """
        train = self._corpus.train
        if found:
            train.stream.know(self._ranks.join(lambda: train.damaged, "record"))
        damaged = train.damaged
        for _, damage in damaged[self._damage_told :]:
            log.message(f"set aside and replaced: {damage}", "warning")
        self._damage_told = len(damaged)
        return self._damage_told

    def facts(self) -> RunFacts:
        """Collect the facts of the run for its manifest."""
        config, corpus = self._config, self._corpus
        return {
            "name": config.run.name,
            "seed": config.run.seed,
            "config_digest": config.digest(),
            "data_digest": corpus.manifest.digest,
            "data_guarantee": corpus.guarantee,
            "tokenizer_digest": tokenizer_digest(self._model.tokenizer),
            "segments": self.segments,
            "model": config.model.spec,
            "num_parameters": self._model.num_parameters,
        }

    def start_facts(self, changed: dict[str, Any]) -> StartFacts:
        """Collect the facts of this start, which the next may change."""
        devices = self._ranks.gather(lambda: device_name(self._config.model.device), "start")
        facts: StartFacts = {
            "world_size": self._ranks.size,
            "devices": devices,
            "sharing": "tree" if self._model.shares else "none",
        }
        if changed:
            facts["changed"] = changed
        return facts

    def _load_tensors(self, path: Path, log: RunLog | NoLog) -> None:
        self._optimizer.restore(
            lambda stem, tensors: self._ranks.agree(
                lambda: checkpoint.load_into(path, stem, tensors),
                "start",
                checkpoint.num_bytes(path, stem),
            )
        )
        for stem, part in self._followers.kept(self._guards.alarms).items():
            if stem in _LATER and not checkpoint.has(path, stem):
                log.message(f"the checkpoint is older than the {stem}: anew from here")
                continue
            part.restore(checkpoint.load(path, stem))

    def _data_state(
        self, step: int, excluded: Collection[int], check: Callable[[], None] | None = None
    ) -> DataState:
        """The state of the data after a step; with `check`, also what a resume needs to find it."""
        frontier, corpus = next_ordinal(self._config, step, excluded), self._corpus
        place = None
        if check is not None:
            place = self._ranks.decide(lambda: corpus.place(frontier, check), "save")
        digest = tokenizer_digest(self._model.tokenizer)
        return corpus.state(digest, self._config.run.seed, frontier, place)
