"""The loop and its side effects.

    stream → place → think → tree → forward → rewards → advantages → loss → update

`train_step` is that line, in that order. Step k (1-based) turns policy v(k−1) into v(k).
"""

import os
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from rntp import rewards
from rntp.config import Config
from rntp.data import data_digest
from rntp.data.corpus import open_corpus, open_data
from rntp.data.live import Live
from rntp.data.ordinals import next_ordinal
from rntp.data.state import DataState, Segment, known_damage, segments
from rntp.errors import CheckpointError, Preempted
from rntp.evaluation.during import Evaluations
from rntp.evaluation.third import check_third
from rntp.model.microbatches import microbatches
from rntp.model.moe import Routing
from rntp.model.opening import open_model, try_forward
from rntp.model.packed_weights import packed_weights, packing_pays
from rntp.model.routing import routers
from rntp.model.sharding import checkpoint_activations, shard
from rntp.model.thought_tree import ThoughtTree
from rntp.model.tokenizer import decode, tokenizer_digest
from rntp.objective.forward import build_tree, forward, forward_with_gradients
from rntp.objective.group_spread import GroupSpread
from rntp.objective.judge_model import open_judge
from rntp.objective.loss import loss
from rntp.objective.quantities import (
    Counts,
    ForwardOutputs,
    OtherLogprobs,
    RewardsAndAdvantages,
    loss_reads,
)
from rntp.objective.reference_model import Reference, open_reference
from rntp.objective.rewards_and_advantages import (
    advantages_over_step,
    compute_rewards,
    sampler_logp,
)
from rntp.placement.placer import placer
from rntp.placement.records import Record, open_record
from rntp.rollout import Check, no_check
from rntp.rollout.engine import open_engine
from rntp.rollout.interleaved import interleaved
from rntp.run import checkpoint
from rntp.run import folder as run_folder
from rntp.run.log import NoLog, RunLog
from rntp.run.mirrors.wandb import import_wandb
from rntp.runtime import faults
from rntp.runtime.faults import fault_point
from rntp.runtime.memory import peak_bytes, reset_peak_bytes
from rntp.runtime.provenance import device_name
from rntp.runtime.ranks import SINGLE_RANK, Ranks, on_device
from rntp.runtime.signals import StopRequest
from rntp.runtime.watchdog import Watchdog
from rntp.training.alarms import Alarms
from rntp.training.estimate import Shape, step_flop
from rntp.training.guards import Guards
from rntp.training.optimizer import Optimizer, Update
from rntp.training.preflight import (
    check_disk,
    check_names,
    check_placement,
    memory_warnings,
    recomputes,
    sharing_notes,
)
from rntp.training.replay import Replay, step_contexts
from rntp.training.saver import Saver
from rntp.training.step_stats import StepStats
from rntp.types import Rollout

Resume = Literal["auto", "never", "must"]


class Trainer:
    """A run: `Trainer(config).fit()`, once.

    The constructor checks everything that can be checked before the first costly second, and
    writes nothing. Raises ConfigError, DataError or CheckpointError, each with the remedy, and
    Preempted.

    stop: where the caller has been listening for signals already.

    ranks: the processes that train together (`rntp.runtime.ranks.open_ranks`). Every one of them
    makes a Trainer of the same config and fits it; rank 0 speaks and writes. accept_data_change: go
    on where the corpus is another than that of the checkpoint.
    """

    def __init__(
        self,
        config: Config,
        *,
        resume: Resume = "auto",
        console: Console | None = None,
        stop: StopRequest | None = None,
        ranks: Ranks = SINGLE_RANK,
        accept_data_change: bool = False,
    ) -> None:
        self.config = config
        self.console = console
        self.stop = stop or StopRequest()
        self.ranks = ranks
        self.accept_data_change = accept_data_change
        self.segments: list[Segment] = []
        self.damage_told = 0
        self.faults = faults.arm(os.environ)
        fault_point("start")
        check_names(config)
        import_wandb(config)
        ranks.decide(lambda: run_folder.check(config, resume), "start")
        self.changed = ranks.decide(lambda: run_folder.changes(config), "start")
        manifest = open_data(config, tolerant=True)
        self.model = open_model(config)
        self.corpus = open_corpus(config, manifest, self.model.tokenizer)
        self.evaluations = Evaluations(config, self.model, self.corpus, ranks)
        check_third(config, self.model.tokenizer)
        check_disk(config, self.model.num_parameters)
        # Layers gather their weights once more to compute again, so all ranks have to do the same.
        self.recomputes = any(ranks.gather(lambda: recomputes(config, self.model, ranks), "start"))
        self.shape = Shape.of(self.model.hf, shares=self.model.shares)
        self.reads = loss_reads(config)
        self.watches = bool(routers(self.model.hf))
        dtype = getattr(torch, config.model.dtype)
        self.reference = open_reference(self.model, config, dtype)
        if self.recomputes:
            checkpoint_activations(self.model.hf)
        if ranks.mesh is not None:
            shard(self.model.hf, ranks.mesh, dtype)
        self.optimizer = Optimizer(
            self.model.hf, config.optim, dtype=dtype, total_steps=config.run.steps
        )
        try_forward(config, self.model)
        self.packs = self.model.shares and packing_pays(self.model.hf, config.budget_tokens)
        engine = open_engine(
            self.model,
            config,
            thoughts=config.thought.thoughts_per_position,
            answer_tokens=config.thought.answer_tokens,
        )
        self.engine = interleaved(engine, self.model, config)
        self.ask = open_judge(self.model, config, self.reference.model if self.reference else None)
        self.decode = partial(decode, self.model.tokenizer)
        self.group_spread = GroupSpread() if config.objective.min_group_std > 0 else None
        policy = config.placement.policy
        self.record = open_record(policy)
        self.replay = Replay(config) if config.data.replay_docs > 0 else None
        self.place = placer(
            config, policy, "placement", record=self.record, tokenizer=self.model.tokenizer
        )
        check_placement(self.place, self.corpus)
        self.guards = Guards(config, ranks)
        ranks.agree(self.stop.check, "start")

    def fit(self) -> dict[str, Any] | None:
        """Train to `run.steps`, resuming where the folder's checkpoints end.

        Returns the before/after comparison (see `rntp.evaluation.compare`), or None without
        evaluation. Raises Preempted after saving, if a signal asks the run to stop, and Diverged.
        """
        config = self.config
        with ExitStack() as open_:
            open_.callback(self.corpus.close)
            folder = self.ranks.decide(
                lambda: open_.enter_context(run_folder.claim(config)), "start"
            )
            log: RunLog | NoLog = NoLog()
            if self.ranks.is_first:
                log = open_.enter_context(RunLog(folder, config, console=self.console))
            self.log = log
            timeout_s = config.run.hang_timeout_s
            self.watchdog = open_.enter_context(Watchdog(folder, timeout_s, self.ranks.rank))
            self.ranks.waiting = self.watchdog.waiting
            with self.stop:
                fault_point("claimed")
                done = self._restore()
                saver = self.saver = self._open_saver(done)
                open_.callback(saver.wait)
                log.write_manifest(self._facts(), self._start_facts())
                self._greet(done)
                fault_point("restored")
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
                        self.ranks.agree(self.stop.check, "step")
                    self._tell_pages()
                except Preempted:
                    self._tell_pages()
                    saver.wait()
                    if done > saver.saved:
                        self._save(done, wait=True)
                    log.message(
                        f"{done} of {config.run.steps} steps done; the same command resumes"
                    )
                    raise
        return self.comparison()

    def train_step(self, step: int) -> None:
        """One step, from ordinals to its updates and its record."""
        config, horizon = self.config, self.config.reward.horizon
        reset_peak_bytes()
        clock = Stopwatch(self.model.device)
        updates: list[Update] = []

        with ExitStack() as unmoved:  # weights stay as they are up to the first update
            if self.packs:
                unmoved.enter_context(packed_weights(self.model.hf))
            rollouts = self.ranks.agree(lambda: self._sample(step), "rollout")
            fault_point("rollout")
            clock.lap("time/rollout_s")

            batches = microbatches(
                rollouts,
                tokens=config.parallel.tokens_per_microbatch,
                horizon=horizon,
                reads=self.reads,
                shares=self.model.shares,
            )
            ahead, counted_P = self._judge_ahead(batches)
            routing = Routing.total(known.routing for known, _, _ in ahead)
            counts = self.ranks.gather(
                lambda: Counts.of(rollouts, horizon, counted_P, routing), "count"
            )
            mine = StepStats(config, rollouts, Counts.total(counts))
            for _ in range(config.objective.epochs_per_rollout):
                finite = self._epoch(batches, mine, ahead, updates, clock)
                unmoved.close()
                updates.append(self._update(step, finite, clock))
        stats = StepStats.joined(self.ranks.gather(lambda: mine, "record"))
        if any(not update.skipped for update in updates):
            self._follow(stats)

        self._phase("record")
        contexts = [page.context for page in stats.pages]
        metrics = {
            "step": step,
            **stats.metrics(),
            "grad_norm": updates[-1].grad_norm,
            "lr": updates[-1].lr,
            "skipped": sum(update.skipped for update in updates),
            "compute/tflop": self._flop(stats) / 1e12,
            **clock.laps,
            "time/step_s": clock.total,
            "memory/peak_gb": peak_bytes() / 1e9,
            "data/ordinal_first": contexts[0].ordinal,
            "data/visits_max": max(c.visit for c in contexts),
            "data/damaged": self._share_damage(),
        }
        digest = data_digest(contexts, [page.positions for page in stats.pages])
        self.log.step({**metrics, "data/digest": digest})
        self.log.rollouts(step, stats.rows(self.model))
        fault_point("step.end")
        self.guards.watch(updates, contexts, metrics, self.log)

    def _epoch(
        self,
        batches: list[tuple[Rollout, ...]],
        mine: StepStats,
        ahead: list[tuple[ForwardOutputs, RewardsAndAdvantages, OtherLogprobs]],
        updates: list[Update],
        clock: "Stopwatch",
    ) -> bool:
        """Run forward and backward over this rank's microbatches; whether all ranks' losses are
        finite.

        The first epoch judges the thoughts, where that was not done ahead; later ones go over the
        same thoughts and advantages, at the clipped ratio. Once the weights have moved, the step
        has to be finished: stop requests wait.
        """
        first, finite = not updates, True
        moved = any(not update.skipped for update in updates)
        for i, batch in enumerate(batches):
            self._phase("forward" if first else "another epoch", i, len(batches))
            tree = build_tree(self.model, batch, self.config.reward.horizon, self.reads)
            if first and not ahead:
                outputs = self._score(tree)
                rewarded, others = self._judge(outputs, tree, batch)
            else:
                known, rewarded, others = ahead[i] if first else mine.known(i)
                outputs = self._learn(tree, known, rewarded, batch)
            part = loss(outputs, tree, rewarded, mine.counts, self.config, others)
            clock.lap("time/forward_s")
            fault_point("forward", part.total)
            check = no_check if moved else self.stop.check
            self._backward(part.total, last=i + 1 == len(batches), check=check)
            fault_point("backward")
            clock.lap("time/backward_s")
            finite = finite and bool(torch.isfinite(part.total))
            if first:
                mine.add(outputs, rewarded, others, part)
            else:
                mine.clipped_tokens += float(part.clipped_tokens)
        return all(self.ranks.gather(lambda: finite, "update"))

    def _update(self, step: int, finite: bool, clock: "Stopwatch") -> Update:
        """Move the weights by an epoch's gradients; leave them where something is not finite."""
        self._phase("update")
        self.saver.let_change()
        fault_point("update.before")
        update = self.optimizer.step(step, loss_is_finite=finite)
        fault_point("update.after")
        clock.lap("time/update_s")
        return update

    def _sample(self, step: int) -> list[Rollout]:
        """The rollouts of this rank's share of the step's ordinals."""
        aside = self.guards.aside
        contexts = step_contexts(self.config, self.corpus, self.replay, step, aside, self.ranks)
        self.watchdog.beat(step=step, ordinal=contexts[0].ordinal)
        self._phase("rollout")
        return self.engine.sample(contexts, self.place, self._poll, step - 1)

    def _backward(self, total: Tensor, *, last: bool, check: Check) -> None:
        """Add a microbatch's gradient; with the last of a rank's, ranks add up theirs.

        They meet before: in what is theirs together nobody can tell who lets the others wait.
        """
        if last or self.ranks.alone:
            self.ranks.agree(check, "backward")
        self._phase("backward")
        self.optimizer.backward(total, last=last)

    def _score(self, tree: ThoughtTree) -> ForwardOutputs:
        return forward(
            self.model,
            tree,
            temperature=self.config.thought.temperature,
            with_collision=any(rewards.NEEDS[name].collision for name in self.config.reward.names),
            watch=self.watches,
        )

    def _learn(
        self,
        tree: ThoughtTree,
        known: ForwardOutputs,
        rewarded: RewardsAndAdvantages,
        batch: tuple[Rollout, ...],
    ) -> ForwardOutputs:
        """The outputs of an earlier forward again, with gradients for what the loss reads."""
        if self.reads.continuation:
            return self._score(tree)
        return forward_with_gradients(
            self.model,
            batch,
            known,
            rewarded.live_P(self.config),
            self.config.reward.horizon,
            self.reads,
            temperature=self.config.thought.temperature,
            watch=self.watches,
        )

    def _judge(
        self, outputs: ForwardOutputs, tree: ThoughtTree, batch: tuple[Rollout, ...]
    ) -> tuple[RewardsAndAdvantages, OtherLogprobs]:
        """What thoughts are worth, and how likely they were under the other weights at hand."""
        config, reference_PH, reference_M = self.config, None, None
        if self.reference and config.objective.kl_weight > 0:
            temperature = config.thought.temperature
            reference_PH, reference_M = self.reference.on_tree(tree, temperature)
        elif self.reference and config.baseline.rereads:
            reference_PH = self.reference.no_think(batch, config.reward.horizon)
        rewarded = compute_rewards(
            outputs,
            tree,
            batch,
            config,
            reference_PH,
            reference_M,
            decode=self.decode,
            verdicts=self.ask(batch),
        )
        return rewarded, OtherLogprobs(sampler_logp(batch).to(self.model.device), reference_M)

    @torch.no_grad()
    def _judge_ahead(
        self, batches: list[tuple[Rollout, ...]]
    ) -> tuple[list[tuple[ForwardOutputs, RewardsAndAdvantages, OtherLogprobs]], Tensor | None]:
        """ForwardOutputs and rewarded of every microbatch once the rewards of all of them are
        known, and which groups count: a pass without gradients, or nothing where none is needed.
        """
        if not self.config.objective.needs_whole_step:
            return [], None
        found = []

        def judge_mine() -> list[RewardsAndAdvantages]:
            for i, batch in enumerate(batches):
                self._poll()
                self._phase("score", i, len(batches))
                tree = build_tree(self.model, batch, self.config.reward.horizon, self.reads)
                outputs = self._score(tree)
                found.append((outputs, *self._judge(outputs, tree, batch)))
            return [rewarded for _, rewarded, _ in found]

        of_ranks = self.ranks.gather(judge_mine, "score")
        usual_std = self.group_spread.mean if self.group_spread else 0.0
        rewarded_parts = advantages_over_step(
            [j for part in of_ranks for j in part], self.config, usual_std
        )
        before = sum(map(len, of_ranks[: self.ranks.rank]))
        mine = on_device(rewarded_parts[before:][: len(found)], self.model.device)
        counted_P = torch.cat([rewarded.counted_P for rewarded in mine])
        again = [(s, rewarded, e) for (s, _, e), rewarded in zip(found, mine, strict=True)]
        return again, counted_P

    def _flop(self, stats: StepStats) -> float:
        """Matrix products of the step, from the tokens that it had."""
        asked = self.ask.num_tokens(stats.rollouts)
        return step_flop(self.config, self.shape, replace(stats.tokens(), asked=asked))

    def _follow(self, stats: StepStats) -> None:
        """What runs along with training: the average of the weights, the record of rewards."""
        if self.reference:
            self.reference.update(self.optimizer.masters)
        if self.record:
            self.record.observe(stats.pages, stats.reward_PG, stats.gain_PG)
        if self.replay:
            self.replay.observe(stats.pages, stats.gain_PG)
        if self.group_spread:
            self.group_spread.observe(stats.compared_PG)

    def _tell_pages(self) -> None:
        """Say what became of the pages that were read as they came."""
        if isinstance(self.corpus.manifest, Live):
            counts = self.corpus.funnel
            told = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
            self.log.message(f"pages read so far: {told}")

    def comparison(self) -> dict[str, Any] | None:
        """Evaluation before and after training, side by side; None until both exist."""
        return self.evaluations.comparison()

    def _evaluate_if_due(self, step: int) -> None:
        self.evaluations.run_if_due(step, self.log, self._poll, self._phase)

    def _poll(self) -> None:
        """What lasts calls it often: a sign of life, and the end if one is asked for.

        Only inside of what ranks agree on. Raises Preempted.
        """
        self.watchdog.beat()
        self.stop.check()

    def _phase(self, name: str, done: int = 0, total: int = 1) -> None:
        self.watchdog.beat(name)
        self.log.phase(name, done, total)

    def _share_damage(self) -> int:
        """Documents set aside so far, by whichever rank; every rank then knows of them."""
        damaged = self.ranks.join(lambda: self.corpus.train.damaged, "record")
        self.corpus.train.stream.know(damaged)
        damaged = self.corpus.train.damaged
        for _, damage in damaged[self.damage_told :]:
            self._warn(f"set aside and replaced: {damage}")
        self.damage_told = len(damaged)
        return self.damage_told

    def _open_saver(self, done: int) -> Saver:
        section = self.config.checkpoint
        saver = Saver(
            self.config.run.dir / "checkpoints",
            section.keep,
            self.ranks,
            asynchronous=section.asynchronous,
            log=self.log,
            saved=done,
        )
        saver.prepare(self._tensors())
        return saver

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint keeps, by stem and by name."""
        companions = {stem: part.tensors() for stem, part in self._companions().items()}
        moments = self.optimizer.moments()
        return {"weights": self.optimizer.masters, "moments": moments, **companions}

    def _save_if_due(self, step: int) -> None:
        """Save after the last step, and every so often but not within a streak of skipped steps."""
        last = step == self.config.run.steps
        due = step % self.config.checkpoint.every_steps == 0
        if last or (due and not self.guards.skipped_in_a_row):
            self._save(step, wait=last)
        self.saver.poll()

    def _save(self, step: int, *, wait: bool) -> None:
        self._phase("save")
        state = {
            # Between two steps nothing is in flight: all ordinals before this one are done.
            "next_ordinal": next_ordinal(self.config, step, self.guards.aside),
            **self.guards.state(),
            "config_digest": self.config.digest(),
            "data_digest": self.corpus.manifest.digest,
            "tokenizer_digest": tokenizer_digest(self.model.tokenizer),
            "data": self._data_state(step, self.guards.aside, place=True).as_dict(),
            "segments": self.segments,
            "reference": self.config.reference_weights,
            "torch": torch.__version__,
        }
        self.saver.save(step, self._tensors(), state, wait=wait)

    def _go_back(self, step: int) -> int:
        """Steps done once the streak that ends with `step` is set aside. Raises Diverged."""
        self.saver.wait()
        self.guards.give_up_streak(step, self.log)
        done = self.saver.saved = self._restore()
        return done

    def _restore(self) -> int:
        """Steps done: those of the newest whole checkpoint, whose state is taken over."""
        folder = self.config.run.dir / "checkpoints"
        self.ranks.decide(lambda: checkpoint.clear_leftovers(folder), "start")
        self.guards.take_in()
        newest = checkpoint.newest_valid(folder, self._warn, ranks=self.ranks, check=self._poll)
        if newest is None:
            self.log.rewind(0)
            self.segments = segments({}, self._data_state(0, ()), 0, newest, accept=True)
            return 0
        state = checkpoint.load_state(newest)
        step = int(state["step"])
        # A source that is read as it comes is read again up to here.
        other = self.ranks.agree(lambda: self.corpus.catch_up(state, self._poll), "start")
        now = self._data_state(step, state.get("set_aside", []))
        self.segments = segments(
            state, now, step, newest, accept=self.accept_data_change, more=other
        )
        self.corpus.train.stream.know(known_damage(state))
        if state["next_ordinal"] != next_ordinal(self.config, step, state.get("set_aside", [])):
            raise CheckpointError(
                f"{newest} was trained with another data.docs_per_step or data.replay_docs"
            )
        self.optimizer.restore(
            lambda stem, tensors: self.ranks.agree(
                lambda: checkpoint.load_into(newest, stem, tensors),
                "start",
                checkpoint.num_bytes(newest, stem),
            )
        )
        for stem, part in self._companions().items():
            if stem == "alarms" and not checkpoint.has(newest, stem):
                self.log.message("the checkpoint is older than the alarms: they start anew")
                continue
            part.restore(checkpoint.load(newest, stem))
        self.guards.restore(state)
        if self.replay:
            self.replay.forget(self.guards.no_replay)
        self.log.rewind(step)
        self.log.message(f"resuming from {newest}: {step} of {self.config.run.steps} steps done")
        return step

    def _data_state(self, step: int, aside: Collection[int], *, place: bool = False) -> DataState:
        """place: with what a resume needs to find it again."""
        frontier = next_ordinal(self.config, step, aside)
        where = None
        if place:
            where = self.ranks.decide(lambda: self.corpus.place(frontier, self._poll), "save")
        return self.corpus.state(
            tokenizer_digest(self.model.tokenizer), self.config.run.seed, frontier, where
        )

    def _warn(self, text: str) -> None:
        self.log.message(text, "warning")

    def _companions(self) -> dict[str, Reference | Record | Replay | GroupSpread | Alarms]:
        """What a checkpoint holds besides weights and moments."""
        found: dict[str, Reference | Record | Replay | GroupSpread | Alarms] = {
            "alarms": self.guards.alarms
        }
        if self.reference:
            found["reference"] = self.reference
        if self.record:
            found["placement"] = self.record
        if self.replay:
            found["replay"] = self.replay
        if self.group_spread:
            found["group_spread"] = self.group_spread
        return found

    def _greet(self, done: int) -> None:
        config, corpus = self.config, self.corpus
        memory = memory_warnings(config, self.model, self.ranks, recompute=self.recomputes)
        for warning in [*config.warnings(), *corpus.warnings(config.model.spec), *memory]:
            self.log.message(warning, "warning")
        packed = ", weights packed" if self.packs else ""
        self.log.message(
            f"{config.run.name}: {config.model.spec} ({self.model.num_parameters / 1e6:.0f}M "
            f"parameters, {config.model.dtype}, {self.model.device}{packed}), {corpus.facts()}, "
            f"steps {done + 1} … {config.run.steps}"
            if done < config.run.steps
            else f"{config.run.name}: all {done} steps are done; raise run.steps to go on"
        )
        for note in sharing_notes(config, self.model):
            self.log.message(note)
        if self.changed:
            listed = (f"{name}: {c['was']} → {c['is']}" for name, c in self.changed.items())
            self.log.message(f"set otherwise than at the last start: {'; '.join(listed)}")
        if self.recomputes and self.config.parallel.activation_checkpointing == "auto":
            self.log.message(
                "layers keep only their inputs for the backward (parallel.activation_checkpointing:"
                " auto), since a step would not fit into memory otherwise; it takes longer for it"
            )
        if self.guards.aside:
            where = config.run.dir / "quarantine"
            self.log.message(f"{len(self.guards.aside)} ordinals are set aside, see {where}")
        if self.faults:
            self.log.message(f"{faults.ARMED_BY} is set: this run is made to fail", "warning")
        self.log.begin(done, config.run.steps)

    def _start_facts(self) -> dict[str, object]:
        """Collect the facts of this start, which the next may change."""
        devices = self.ranks.gather(lambda: device_name(self.config.model.device), "start")
        facts: dict[str, object] = {
            "world_size": self.ranks.size,
            "devices": devices,
            "sharing": "tree" if self.model.shares else "none",
        }
        return {**facts, "changed": self.changed} if self.changed else facts

    def _facts(self) -> dict[str, object]:
        return {
            "name": self.config.run.name,
            "seed": self.config.run.seed,
            "config_digest": self.config.digest(),
            "data_digest": self.corpus.manifest.digest,
            "data_guarantee": self.corpus.guarantee,
            "tokenizer_digest": tokenizer_digest(self.model.tokenizer),
            "segments": self.segments,
            "model": self.config.model.spec,
            "num_parameters": self.model.num_parameters,
        }


class Stopwatch:
    """Seconds by name; a name may be lapped more than once.

    A GPU works behind the program: a lap ends once the device has done what it was given.
    """

    def __init__(self, device: torch.device) -> None:
        self.laps: dict[str, float] = {}
        self._device = device
        self._start = self._last = self._now()

    def lap(self, name: str) -> None:
        now = self._now()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return self._now() - self._start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
