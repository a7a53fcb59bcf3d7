"""Thoughts whose answers are graded by judges outside of the run, while others are still sampled.

An engine around another one: contexts are sampled in batches, and the answers of a batch are under
way to the judges while the next one decodes. Verdicts are a part of the thought from there on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from rntp.config import Config
from rntp.data.corpus import Corpus
from rntp.errors import Diverged, JudgesAway
from rntp.judges.auditing import TOGETHER, Auditor, told
from rntp.judges.opening import open_panel
from rntp.judges.panel import Graded, Panel, wait_for_judges
from rntp.judges.prompts import Case
from rntp.model import LanguageModel
from rntp.model.tokenizer import decode
from rntp.placement import Place
from rntp.rewards import NEEDS
from rntp.rollout import Check, Engine, no_check
from rntp.rollout.interleaved import open_training_engine
from rntp.rollout.tool_calls import serving
from rntp.rollout.vllm.engine import running
from rntp.types import Context, Rollout, Thought, Verdict

# Seconds before missing verdicts are asked for again.
_PAUSE_S = 5.0

Tell = Callable[[str, Literal["info", "warning"]], None]  # text, level


def _tell_nobody(text: str, level: str) -> None:
    """Say nothing."""


class JudgedEngine:
    """Samples through another engine, and has its answers graded. Works within `judging`.

    panel: whom to ask. tell: what people should know. audits: whether this rank does.
    """

    def __init__(
        self, engine: Engine, model: LanguageModel, config: Config, auditor: Auditor
    ) -> None:
        self._engine, self._config, self._auditor = engine, config, auditor
        self._decode = partial(decode, model.tokenizer)
        self.panel: Panel | None = None
        self.tell: Tell = _tell_nobody
        self.audits = False

    @property
    def inner(self) -> Engine:
        """The engine that samples."""
        return self._engine

    def sample(
        self,
        contexts: Sequence[Context],
        place: Place,
        check: Check = no_check,
        policy_version: int = 0,
    ) -> list[Rollout]:
        """Rollouts with verdicts, in order; see `Engine`.

        Raises JudgesAway where more verdicts are missing than a step may lack, and Diverged where
        an audit finds that the judges can be fooled.
        """
        if self.audits and self._auditor.is_due(policy_version):
            self._audit(check)
        # What samplers of a store bring comes a step at a time.
        whole = self._config.store is not None
        size, graded = len(contexts) if whole else self._config.rollout.docs_per_batch, []
        for first in range(0, len(contexts), size):
            batch = contexts[first : first + size]
            rollouts = self._engine.sample(batch, place, check, policy_version)
            graded.append((rollouts, self._begin(rollouts)))
        found = [
            rollout
            for rollouts, under_way in graded
            for rollout in with_verdicts(rollouts, self._finish(under_way, check))
        ]
        return self._complete(found, check)

    def audit_numbers(self, step: int) -> dict[str, float]:
        """What the audit before a step found, by metric, zeros on ranks that do not audit; {} where
        none was due."""
        if not self._auditor.is_due(step - 1):
            return {}
        found = self._auditor.found if self.audits else {}
        return {name: found.get(name, 0.0) for name in ("judge/fooled", "judge/gold")}

    def _audit(self, check: Check) -> None:
        """Put known attacks to the judges; tell, or end the run, where too many work."""
        audits = self._auditor.audit(self._asked, check)
        for name, found in audits.items():
            self.tell(f"audit of judge {name}: {told(found)}", "info")
        complaint = self._auditor.complaint(audits[TOGETHER])
        if complaint and self._config.reward.judges.audit == "stop":
            raise Diverged(f"{complaint}. To train all the same: reward.judges.audit: warn")
        if complaint:
            self.tell(complaint, "warning")

    def _complete(self, rollouts: list[Rollout], check: Check) -> list[Rollout]:
        """Ask again for what is missing, until little enough is, or patience has run out."""
        settings, waited = self._config.reward.judges, 0.0
        while (share := missing_share(rollouts)) > settings.missing:
            what = f"{share:.0%} of the step's verdicts are missing ({', '.join(kinds(rollouts))})"
            if waited >= settings.patience_s:
                raise JudgesAway(
                    f"{what} after {waited:.0f} s of waiting, and reward.judges.missing allows "
                    f"{settings.missing:.0%}; see to the judges at "
                    f"{', '.join(judge.url for judge in settings.use.values())}, or to the budget "
                    "in reward.judges.calls and .tokens, and start the same command again"
                )
            self.tell(f"{what}; asking again", "warning")
            pause = min(_PAUSE_S, settings.patience_s - waited)
            wait_for_judges(pause, check)
            waited += pause
            rollouts = with_verdicts(rollouts, self._finish(self._begin(rollouts), check))
        self._asked.accept_missing()
        return rollouts

    @property
    def _asked(self) -> Panel:
        assert self.panel is not None, "sample within `judging`"
        return self.panel

    def _begin(self, rollouts: Sequence[Rollout]) -> tuple[list[int], int, Graded]:
        """Put all answers under way; an empty one is wrong, whoever judges, and nobody is asked."""
        cases = [case for r in rollouts for case in self._cases(r)]
        asked = [n for n, case in enumerate(cases) if case.answer.strip()]
        return asked, len(cases), self._asked.begin([cases[n] for n in asked])

    def _finish(
        self, under_way: tuple[list[int], int, Graded], check: Check
    ) -> list[dict[str, Verdict]]:
        """Verdicts of all answers, in order."""
        asked, count, graded = under_way
        found = [{name: Verdict(0.0) for name in self._asked.judges} for _ in range(count)]
        for n, verdicts in zip(asked, self._asked.finish(graded, check), strict=True):
            found[n] = verdicts
        return found

    def _cases(self, rollout: Rollout) -> Iterator[Case]:
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            page, truth = self._auditor.around(rollout.context, position)
            for thought in group:
                yield Case(page, self._decode(thought.answer), truth)


def open_judged_engine(
    model: LanguageModel, config: Config, corpus: Corpus, engine: Engine | None = None
) -> Engine:
    """Make the engine that samples for training, with judges around it where a scheme asks them.

    engine: what samples, where it is not this process.
    """
    engine = engine or open_training_engine(model, config)
    if not any(NEEDS[name].outside for name in config.reward.names):
        return engine
    auditor = Auditor(config, corpus, partial(decode, model.tokenizer))
    return JudgedEngine(engine, model, config, auditor)


def audit_numbers(engine: object, step: int) -> dict[str, float]:
    """What the audit before a step found, by metric; {} where there was none."""
    return engine.audit_numbers(step) if isinstance(engine, JudgedEngine) else {}


def with_verdicts(
    rollouts: Sequence[Rollout], verdicts: Sequence[dict[str, Verdict]]
) -> list[Rollout]:
    """The rollouts with verdicts on their thoughts, in order."""
    left = iter(verdicts)
    return [
        replace(
            r,
            thoughts=tuple(
                tuple(replace(t, verdicts=next(left)) for t in group) for group in r.thoughts
            ),
        )
        for r in rollouts
    ]


def missing_share(rollouts: Sequence[Rollout]) -> float:
    """Share of thoughts that lack a verdict."""
    lacks = [any(v.yes is None for v in t.verdicts.values()) for t in _thoughts(rollouts)]
    return sum(lacks) / max(len(lacks), 1)


def kinds(rollouts: Sequence[Rollout]) -> list[str]:
    """Kinds of failure among missing verdicts, in order."""
    found = (v for t in _thoughts(rollouts) for v in t.verdicts.values() if v.yes is None)
    return sorted({v.failure for v in found})


def _thoughts(rollouts: Sequence[Rollout]) -> Iterator[Thought]:
    return (t for r in rollouts for group in r.thoughts for t in group)


@contextmanager
def judging(
    engine: object,
    config: Config,
    folder: Path | None = None,
    rank: int = 0,
    tell: Tell = _tell_nobody,
) -> Iterator[None]:
    """Let an engine's answers be graded by the judges of a config, until the context is left.

    folder: where verdicts are kept for a resume; None keeps them in memory. Rank 0 audits. Nothing
    is done where the engine asks no judge. Raises ConfigError where one cannot be asked.
    """
    if not isinstance(engine, JudgedEngine):
        yield
        return
    engine.panel = open_panel(config, folder, rank)
    engine.tell, engine.audits = tell, rank == 0
    try:
        yield
    finally:
        engine.panel.close()
        engine.panel = None


@contextmanager
def helped(
    engine: object, model: LanguageModel, config: Config, folder: Path, rank: int, tell: Tell
) -> Iterator[None]:
    """Let an engine's thoughts call tools and its answers be judged, as a config says, and its
    vLLM run, until the context is left. folder: of the run; see `serving`, `judging`, `running`."""
    with (
        running(engine, folder, lambda line: tell(line, "info")),
        serving(engine, model, config, folder / "tools", rank),
        judging(engine, config, folder / "judges", rank, tell),
    ):
        yield
