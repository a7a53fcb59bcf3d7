"""Where the thoughts of a step come from: an engine of this process, or samplers of a store."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from rntp.config import Config
from rntp.data.corpus import Corpus
from rntp.errors import ConfigError
from rntp.model import LanguageModel
from rntp.placement.placer import training_placer
from rntp.rollout import Engine
from rntp.rollout.judged import helped, open_judged_engine
from rntp.rollout.store.engine import StoreEngine
from rntp.rollout.tool_calls import waiting_metrics
from rntp.rollout.vllm.engine import vllm_of
from rntp.run import checkpoint
from rntp.run.log import NoLog, RunLog
from rntp.runtime.ranks import Ranks
from rntp.training.followers import Followers
from rntp.training.guards import Guards
from rntp.training.phases import Phases
from rntp.training.preflight import check_placement
from rntp.training.replay import step_contexts
from rntp.types import Context, Rollout


class Sampling:
    """Contexts of a step, the placing in them, and the engine. engine: of this process, until the
    run is `opened` with another.

    Raises ConfigError where what samples cannot be had, and DataError where positions cannot.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        corpus: Corpus,
        followers: Followers,
        guards: Guards,
        ranks: Ranks,
    ) -> None:
        self._config, self._model, self._corpus = config, model, corpus
        self._followers, self._guards, self._ranks = followers, guards, ranks
        self.place = training_placer(config, followers.record, model.tokenizer)
        check_placement(self.place, corpus)
        self.engine: Engine = open_judged_engine(model, config, corpus)
        self._store: StoreEngine | None = None
        if config.store is not None and not ranks.alone:
            raise ConfigError(
                "samplers of a store serve a trainer of one rank so far; start one, or take "
                "rollout.samplers away"
            )
        if config.rollout.engine == "vllm" and not ranks.alone:
            raise ConfigError(
                "rollout.engine: vllm samples for a trainer of one rank so far; start one, or set "
                "it to inprocess"
            )

    @contextmanager
    def opened(self, folder: Path, log: RunLog | NoLog) -> Iterator[None]:
        """Open what sampling needs, until the context is left. folder: of the run."""
        config, model, rank = self._config, self._model, self._ranks.rank
        with ExitStack() as open_:
            if config.store is not None:
                self._store = open_.enter_context(self._open_store(log))
                self.engine = open_judged_engine(model, config, self._corpus, self._store)
            open_.enter_context(helped(self.engine, model, config, folder, rank, log.message))
            yield
            if self._store is not None:
                self._store.finish()  # but not where the run was stopped, or has failed

    def rollouts(self, step: int, phases: Phases) -> list[Rollout]:
        """Sample the thoughts of this rank's share of the step's ordinals."""
        contexts = self._contexts(step)
        phases.reads(step, contexts[0].ordinal)
        return self.engine.sample(contexts, self.place, phases.poll, step - 1)

    def metrics(self) -> dict[str, float | str]:
        """What the step's record says of samplers, and of tools that they wait for."""
        if self._store:
            return self._store.metrics()
        vllm = vllm_of(self.engine)
        return {**(vllm.metrics() if vllm else {}), **waiting_metrics(self.engine)}

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of samplers."""
        return self._store.facts() if self._store else {}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take back what `facts` gave."""
        if self._store:
            self._store.restore(facts)

    def _open_store(self, log: RunLog | NoLog) -> StoreEngine:
        return StoreEngine(
            self._config,
            self._model,
            upcoming=self._contexts,
            placement=self._learned,
            keep=self._oldest_checkpoint,
            say=log.message,
        )

    def _contexts(self, step: int) -> list[Context]:
        replay, excluded = self._followers.replay, self._guards.excluded
        return step_contexts(self._config, self._corpus, replay, step, excluded, self._ranks)

    def _learned(self) -> dict[str, Tensor]:
        """What placing has learnt by now."""
        record = self._followers.record
        return record.tensors() if record else {}

    def _oldest_checkpoint(self) -> int:
        """The earliest step that a start may go on from."""
        found = checkpoint.committed(self._config.run.dir / "checkpoints")
        return found[0][0] if found else 0
