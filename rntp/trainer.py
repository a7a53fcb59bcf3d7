"""The loop and its side effects.

    stream → place → think → tree → forward → rewards → advantages → loss → update

`train_step` is that line, in that order. Step k (1-based) turns policy v(k−1) into v(k).
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.errors import Preempted
from rntp.evaluation.during import Evaluations
from rntp.evaluation.third import check_third
from rntp.model.opening import open_model
from rntp.model.packed_weights import packed_weights, packing_pays
from rntp.objective.loss import loss
from rntp.objective.passes import Passes
from rntp.rollout import no_check
from rntp.rollout.judged import audit_numbers
from rntp.run import folder as run_folder
from rntp.run.log import open_log
from rntp.runtime import faults
from rntp.runtime.faults import fault_point
from rntp.runtime.ranks import SINGLE_RANK, Ranks
from rntp.runtime.signals import StopRequest
from rntp.runtime.watchdog import Watchdog
from rntp.training.estimate import Shape, step_flop
from rntp.training.followers import Followers
from rntp.training.greeting import greeting, pages_read
from rntp.training.guards import Guards
from rntp.training.optimizer import Update, open_optimizer
from rntp.training.phases import Phases
from rntp.training.preflight import check_disk, check_start
from rntp.training.recorded import recorded
from rntp.training.run_state import RunState
from rntp.training.sampling import Sampling
from rntp.training.step_memory import StepMemory
from rntp.training.step_metrics import WholeStep
from rntp.training.step_stats import StepStats, update_metrics
from rntp.training.thought_rows import thought_rows
from rntp.training.whole_step import recount, rewards_ahead, sample_and_count


class Trainer:
    """A run: `Trainer(config).fit()`, once.

    The constructor checks everything that can be checked before the first costly second, and
    writes nothing. Raises ConfigError, DataError or CheckpointError, each with the remedy, and
    Preempted.

    stop: where the caller has been listening for signals already. ranks: the processes that train
    together (`rntp.runtime.ranks.open_ranks`). Every one of them makes a Trainer of the same config
    and fits it; rank 0 speaks and writes.
    accept_data_change: go on where the corpus is another than that of the checkpoint.
    """

    def __init__(
        self,
        config: Config,
        *,
        resume: run_folder.Resume = "auto",
        console: Console | None = None,
        stop: StopRequest | None = None,
        ranks: Ranks = SINGLE_RANK,
        accept_data_change: bool = False,
    ) -> None:
        self.config, self.console, self.ranks = config, console, ranks
        self.stop = stop or StopRequest()
        self.faults = faults.arm(os.environ)
        fault_point("start")
        self.changed = check_start(config, resume, ranks)
        manifest = open_data(config, tolerant=True)
        self.model = open_model(config)
        self.corpus = open_corpus(config, manifest, self.model.tokenizer)
        self.evaluations = Evaluations(config, self.model, self.corpus, ranks)
        check_third(config, self.model.tokenizer)
        check_disk(config, self.model.num_parameters)
        # Layers gather their weights once more to compute again, so all ranks have to do the same.
        self.memory = StepMemory.of(config, self.model, ranks)
        self.recomputes = any(ranks.gather(lambda: self.memory.recomputes, "start"))
        self.shape = Shape.of(self.model.hf, shares=self.model.shares)
        self.followers = Followers.open(config, self.model)
        self.passes = Passes(self.model, config, self.followers.reference)
        self.optimizer = open_optimizer(self.model, config, ranks, recompute=self.recomputes)
        self.packs = self.model.shares and packing_pays(self.model.hf, config.budget_tokens)
        self.guards = Guards(config, ranks)
        self.sampling = Sampling(
            config, self.model, self.corpus, self.followers, self.guards, ranks
        )
        self.state = RunState(
            config,
            self.model,
            self.corpus,
            self.optimizer,
            self.followers,
            self.guards,
            ranks,
            self.sampling,
            accept_data_change=accept_data_change,
        )
        self.asked_to_stop = False
        ranks.agree(self.stop.check, "start")

    def fit(self) -> dict[str, Any] | None:
        """Train to `run.steps`, resuming where the folder's checkpoints end.

        Returns the before/after comparison (see `rntp.evaluation.compare`), or None without
        evaluation. Raises Preempted after saving, if a signal asks the run to stop, and Diverged.
        """
        with ExitStack() as open_:
            self._open_run(open_)
            with self.stop:
                fault_point("claimed")
                done = self.state.restore(self.log, self.phases.poll)
                self.saver = self.state.open_saver(done, self.log)
                open_.callback(self.saver.wait)
                self._greet(done)
                fault_point("restored")
                self._train(done)
        return self.comparison()

    def train_step(self, step: int) -> None:
        """Do one step, from ordinals to its updates and its record."""
        phase, config = self.phases, self.config
        phase.begin_step()
        updates: list[Update] = []
        with ExitStack() as unmoved:  # weights stay as they are up to the first update
            if self.packs:
                unmoved.enter_context(packed_weights(self.model.hf))
            with phase("rollout"):
                sample = partial(self.sampling.rollouts, step, phase)
                rollouts, counts = sample_and_count(sample, config, self.ranks)
                fault_point("rollout")
            batches = self.passes.microbatches(rollouts)
            ahead = rewards_ahead(self.passes, batches, self.ranks, phase, self.followers.usual_std)
            if ahead:
                counts = recount(rollouts, ahead, config, self.ranks)
            stats = StepStats(config, rollouts, counts, ahead)
            for epoch in range(config.objective.epochs_per_rollout):
                name = "another epoch" if epoch else "forward"
                for i, batch in enumerate(batches):
                    with phase(name, i, len(batches)):
                        tree = self.passes.tree(batch)
                        found = self.passes.run(tree, batch, stats.known(epoch, i))
                        outputs, rewarded, others = found
                        part = loss(outputs, tree, rewarded, counts, config, others)
                        fault_point("forward", part.total)
                    with phase("backward"):
                        self._backward(part.total, updates, last=i + 1 == len(batches))
                    stats.add(epoch, found, part)
                unmoved.close()
                with phase("update"):
                    updates.append(self._update(step, stats))
        self._record(step, updates, stats)

    def comparison(self) -> dict[str, Any] | None:
        """Evaluation before and after training, side by side; None until both exist."""
        return self.evaluations.comparison()

    def _train(self, done: int) -> None:
        """Go on from so many steps to the last, with what lies between two steps."""
        config = self.config
        try:
            self._evaluate_if_due(done)
            while done < config.run.steps:
                self.train_step(done + 1)
                done += 1
                if self.guards.streak:
                    done = self._go_back(done)
                else:
                    self._save_if_due(done)
                self._evaluate_if_due(done)
                if self.asked_to_stop or self.ranks.alone:  # all know since the step's record
                    self.ranks.agree(self.stop.check, "step")
            self._tell_pages()
        except Preempted:
            self._tell_pages()
            self.saver.wait()
            if done > self.saver.saved:
                self._save(done, wait=True)
            self.log.message(f"{done} of {config.run.steps} steps done; the same command resumes")
            raise

    def _backward(self, total: Tensor, updates: Sequence[Update], *, last: bool) -> None:
        """Add a microbatch's gradient; with the last of a rank's, ranks add up theirs.

        They meet before: in what is theirs together nobody can tell who lets the others wait. Once
        the weights have moved, the step has to be finished: stop requests wait.
        """
        moved = any(not update.skipped for update in updates)
        if last or self.ranks.alone:
            self.ranks.agree(no_check if moved else self.stop.check, "backward")
        self.optimizer.backward(total, last=last)
        fault_point("backward")

    def _update(self, step: int, stats: StepStats) -> Update:
        """Move the weights by an epoch's gradients; leave them where something is not finite."""
        infinite = self.ranks.total(lambda: {"": torch.tensor(not stats.take_finite())}, "update")
        self.saver.let_change()
        fault_point("update.before")
        update = self.optimizer.step(step, loss_is_finite=not infinite[""])
        fault_point("update.after")
        return update

    def _record(self, step: int, updates: Sequence[Update], stats: StepStats) -> None:
        """Let what follows training see the step, and write down what it was."""
        config, asked = self.config, self.passes.num_asked(stats.rollouts)
        more = {"stop": float(self.stop.received is not None), "damaged": self.state.new_damage}
        more |= audit_numbers(self.sampling.engine, step)
        whole = WholeStep.exchange(stats, self.ranks, asked, more)
        self.asked_to_stop = bool(whole.sums["stop"])
        gated = whole.judged(self.followers.gate)
        if any(not update.skipped for update in updates):
            self.followers.follow(whole, self.optimizer.masters)
        self.phases.tell("record")
        metrics = {
            **whole.metrics(),
            **gated,
            **update_metrics(step, updates),
            "data/damaged": self.state.share_damage(self.log, found=bool(whole.sums["damaged"])),
            "compute/tflop": step_flop(config, self.shape, whole.tokens()) / 1e12,
            **self.sampling.metrics(),
            **self.phases.metrics(),
        }
        self.log.step({**metrics, "data/digest": whole.digest})
        self.log.rollouts(step, thought_rows(stats, self.model, recorded(config, whole.pages)))
        fault_point("step.end")
        self.guards.watch(updates, whole.pages, metrics, self.log)

    def _open_run(self, open_: ExitStack) -> None:
        """Claim the run folder, and open what watches and records."""
        config, ranks = self.config, self.ranks
        open_.callback(self.corpus.close)
        folder = ranks.decide(lambda: open_.enter_context(run_folder.claim(config)), "start")
        self.log = open_log(folder, config, ranks.rank, ranks.size, self.console)
        open_.enter_context(self.log)
        open_.enter_context(self.sampling.opened(folder, self.log))
        watchdog = Watchdog(folder, config.run.timeouts_s.hang, ranks.rank)
        open_.enter_context(watchdog)
        ranks.waiting = watchdog.waiting
        self.phases = Phases(self.model.device, watchdog, self.log, self.stop.check)

    def _greet(self, done: int) -> None:
        self.log.write_manifest(self.state.facts(), self.state.start_facts(self.changed))
        lines = greeting(
            self.config,
            self.model,
            self.corpus,
            self.guards,
            done=done,
            packs=self.packs,
            memory=self.memory,
            recomputes=self.recomputes,
            changed=self.changed,
        )
        for text, level in lines:
            self.log.message(text, level)
        if self.faults:
            self.log.message(f"{faults.ARMED_BY} is set: this run is made to fail", "warning")
        self.log.begin(done, self.config.run.steps)

    def _tell_pages(self) -> None:
        for line in pages_read(self.corpus):
            self.log.message(line)

    def _evaluate_if_due(self, step: int) -> None:
        self.evaluations.run_if_due(step, self.log, self.phases.poll, self.phases.tell)

    def _save_if_due(self, step: int) -> None:
        """Save after the last step, and every so often but not within a streak of skipped steps."""
        last = step == self.config.run.steps
        due = step % self.config.checkpoint.every_steps == 0
        if last or (due and not self.guards.skipped_in_a_row):
            self._save(step, wait=last)
        self.saver.poll()

    def _save(self, step: int, *, wait: bool) -> None:
        self.phases.tell("save")
        self.state.save(step, self.saver, self.phases.poll, wait=wait)

    def _go_back(self, step: int) -> int:
        """Steps done once the streak that ends with `step` is set aside. Raises Diverged."""
        self.saver.wait()
        self.ranks.agree(self.log.sync, "rollback")  # its thoughts are kept
        self.guards.give_up_streak(step, self.log)
        done = self.saver.saved = self.state.restore(self.log, self.phases.poll)
        return done
