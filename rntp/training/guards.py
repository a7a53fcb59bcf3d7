"""What watches the numbers of a run: non-finite steps, streaks of them that go back, and alarms.

All ranks watch the same numbers and come to the same conclusions; what is written down and said is
the first rank's.
"""

from collections.abc import Mapping, Sequence

from rntp.config import Config
from rntp.errors import Diverged
from rntp.run.log import NoLog, RunLog
from rntp.runtime.ranks import Ranks
from rntp.training import quarantine
from rntp.training.alarms import Alarms
from rntp.training.optimizer import Update
from rntp.training.rollback import exclude_streak, load_rollbacks
from rntp.types import Page


class Guards:
    """The guards of one run. alarms: kept in the checkpoint beside the weights.

    excluded: ordinals not trained any more. no_replay: those of the first visits of contexts
    that do not come back any more.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.alarms = Alarms()
        self.excluded: set[int] = set()
        self.no_replay: set[int] = set()
        self.skipped_in_a_row = 0
        self._config, self._ranks = config, ranks

    def watch(
        self,
        updates: Sequence[Update],
        pages: Sequence[Page],
        metrics: Mapping[str, float],
        log: RunLog | NoLog,
    ) -> None:
        """Take in a step that is on record, with the updates of all its epochs.

        A step counts as non-finite where any of them was dropped.
        Raises Diverged at an alarm, if `run.on_trouble: stop` says so.
        """
        dropped = [number for number, update in enumerate(updates, 1) if update.skipped]
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if dropped else 0
        if dropped:
            self._ranks.decide(
                lambda: self._note_skip(int(metrics["step"]), updates, pages), "record"
            )
            fresh = [c.ordinal for c in pages if c.replay_of is None]
            these = f"ordinals {fresh[0]} … {fresh[-1]}" if fresh else "the contexts of this step"
            outcome = f"weights and moments are unchanged, {these} were not trained"
            if len(dropped) < len(updates):
                numbers = ", ".join(map(str, dropped))
                outcome = (
                    f"update {numbers} of {len(updates)} was dropped, the others on {these} moved "
                    "weights and moments"
                )
            log.message(f"loss or gradient is not finite; {outcome}", "warning")
        lines = self.alarms.observe(metrics)
        for line in lines:
            log.message(line, "warning")
        if lines and self._config.run.on_trouble == "stop":
            error = Diverged(
                f"an alarm ended the run after step {metrics['step']} (run.on_trouble: stop): "
                f"{lines[0]}. To go on all the same: --set run.on_trouble=roll_back"
            )
            error.agreed = True  # all ranks have seen the same
            raise error

    @property
    def streak(self) -> int:
        """Non-finite steps in a row, once they are too many to go on with these weights; or 0."""
        too_many = self.skipped_in_a_row >= self._config.run.on_trouble.get("skipped_steps")
        return self.skipped_in_a_row if too_many else 0

    def give_up_streak(self, step: int, log: RunLog | NoLog) -> None:
        """Set aside the streak that ends with `step`; a restore then goes back before it.

        Raises Diverged if that is not to be.
        """
        self._ranks.decide(
            lambda: exclude_streak(
                self._config, step, self.streak, lambda text: log.message(text, "warning")
            ),
            "rollback",
        )

    def load_rollbacks(self) -> None:
        """Take over what the run folder says of earlier rollbacks."""
        found = self._ranks.decide(lambda: load_rollbacks(self._config.run.dir), "start")
        self.excluded, self.no_replay = found

    def restore(self, state: Mapping[str, object]) -> None:
        """Take over what a checkpoint says, beside what the run folder does."""
        excluded, skipped = state.get("set_aside", []), state["skipped_in_a_row"]
        assert isinstance(excluded, list)
        assert isinstance(skipped, int)
        self.excluded |= set(excluded)
        self.skipped_in_a_row = skipped

    def _note_skip(self, step: int, updates: Sequence[Update], pages: Sequence[Page]) -> None:
        first = next(update for update in updates if update.skipped)
        facts = {
            "grad_norm": first.grad_norm,
            "lr": first.lr,
            "updates": len(updates),
            "dropped_updates": [n for n, update in enumerate(updates, 1) if update.skipped],
            "moved": any(not update.skipped for update in updates),
        }
        quarantine.note_skip(self._config.run.dir, step, pages, facts)
