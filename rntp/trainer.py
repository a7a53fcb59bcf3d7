"""The loop and its side effects.

    stream → place → think → tree → forward → rewards → advantages → loss → update

`train_step` is that line, in that order. Step k (1-based) turns policy v(k−1) into v(k).
"""

import json
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from rntp import checkpoint, rewards, run_folder
from rntp.config import Config
from rntp.data import data_digest
from rntp.data.corpus import open_corpus, open_data
from rntp.data.state import DataState, Segment, known_damage, segments
from rntp.errors import CheckpointError, Diverged, Preempted
from rntp.estimate import Shape, step_flop
from rntp.evaluation import compare, evaluate
from rntp.evaluation.third import check_third
from rntp.files import write_json
from rntp.group_spread import GroupSpread
from rntp.judging import open_judge
from rntp.log import RunLog
from rntp.memory import peak_bytes
from rntp.metrics import Tally
from rntp.objective import Elsewhere, loss
from rntp.optim import Optimizer, Update
from rntp.parallel import microbatches
from rntp.preflight import (
    check_disk,
    check_memory,
    check_names,
    check_placement,
    open_model,
)
from rntp.records import Record, open_record
from rntp.reference import Reference, open_reference
from rntp.replay import Replay, fresh_contexts, step_contexts
from rntp.rollout.inprocess import open_engine
from rntp.rollout.interleaved import interleaved
from rntp.rollout.place import placer
from rntp.signals import StopRequest
from rntp.step import Counts, Judgement, Scores, judge, over_step, plant, sampler_logp, score
from rntp.tokenizer import decode, tokenizer_digest
from rntp.tree import ThoughtTree, tree_tokens
from rntp.types import Context, Rollout
from rntp.wandb_mirror import import_wandb

Resume = Literal["auto", "never", "must"]

MEMORISED = 0.1  # nats per token: worth a warning, see `memorised`


class Trainer:
    """A run: `Trainer(config).fit()`, once.

    The constructor checks everything that can be checked before the first costly second, and
    writes nothing. Raises ConfigError, DataError or CheckpointError, each with the remedy.
    accept_data_change: go on where the corpus is another than that of the checkpoint.
    """

    def __init__(
        self,
        config: Config,
        *,
        resume: Resume = "auto",
        console: Console | None = None,
        accept_data_change: bool = False,
    ) -> None:
        self.config = config
        self.console = console
        self.accept_data_change = accept_data_change
        self.segments: list[Segment] = []
        self.damage_told = 0
        check_names(config)
        import_wandb(config)
        run_folder.check(config, resume)
        manifest = open_data(config, tolerant=True)
        self.model = open_model(config)
        self.corpus = open_corpus(config, manifest, self.model.tokenizer)
        check_third(config, self.model.tokenizer)
        check_disk(config, self.model.num_parameters)
        check_memory(config, self.model)
        self.shape = Shape.of(self.model.hf)
        self.optimizer = Optimizer(
            self.model.hf,
            config.optim,
            dtype=getattr(torch, config.model.dtype),
            total_steps=config.run.steps,
        )
        engine = open_engine(
            self.model,
            config,
            thoughts=config.thought.thoughts_per_position,
            answer_tokens=config.thought.answer_tokens,
        )
        self.engine = interleaved(engine, self.model, config)
        self.reference = open_reference(self.model, self.optimizer.masters, config)
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
        self.stop = StopRequest()
        self.skipped_in_a_row = 0

    def fit(self) -> dict[str, Any] | None:
        """Train to `run.steps`, resuming where the folder's checkpoints end.

        Returns the before/after comparison (see `rntp.evaluation.compare`), or None without
        evaluation. Raises Preempted after saving, if a signal asks the run to stop, and Diverged.
        """
        config = self.config
        with (
            closing(self.corpus),
            run_folder.claim(config) as folder,
            RunLog(folder, config, console=self.console) as log,
        ):
            self.log = log
            with self.stop:
                done = saved = self._restore()
                log.write_manifest(self._facts())
                self._greet(done)
                try:
                    self._evaluate_if_due(done)
                    for step in range(done + 1, config.run.steps + 1):
                        self.train_step(step)
                        done = step
                        if step % config.checkpoint.every_steps == 0 or step == config.run.steps:
                            self._save(step)
                            saved = step
                        self._evaluate_if_due(step)
                        self.stop.check()
                except Preempted:
                    if done > saved:
                        self._save(done)
                    log.message(
                        f"{done} of {config.run.steps} steps done; the same command resumes"
                    )
                    raise
        return self.comparison()

    def train_step(self, step: int) -> None:
        """One step, from ordinals to an update and its record."""
        config, horizon = self.config, self.config.reward.horizon
        clock = Stopwatch()

        contexts = step_contexts(config, self.corpus, self.replay, step)
        rollouts = self.engine.sample(contexts, self.place, self.stop.check, step - 1)
        clock.lap("time/rollout_s")

        batches = microbatches(
            rollouts, tokens=config.parallel.tokens_per_microbatch, horizon=horizon
        )
        ahead, counted_P = self._judge_ahead(batches)
        tally = Tally(config, rollouts, Counts.of(rollouts, horizon, counted_P))
        for i, batch in enumerate(batches):
            self.stop.check()
            self.log.phase("forward", i, len(batches))
            tree = plant(self.model, batch, horizon)
            scores = self._score(tree)
            judged, elsewhere = ahead[i] if ahead else self._judge(scores, tree, batch)
            part = loss(scores, tree, judged, tally.counts, config, elsewhere)
            clock.lap("time/forward_s")
            part.total.backward()
            clock.lap("time/backward_s")
            tally.add(scores, judged, elsewhere, part)
        update = self.optimizer.step(step, loss_is_finite=tally.loss_is_finite)
        clock.lap("time/update_s")
        for _ in range(1, config.objective.epochs_per_rollout):
            update = self._another_epoch(step, batches, tally, clock)
        if not update.skipped:
            self._follow(tally)

        self.log.step(
            {
                "step": step,
                **tally.metrics(),
                "grad_norm": update.grad_norm,
                "lr": update.lr,
                "skipped": int(update.skipped),
                "compute/tflop": self._flop(tally) / 1e12,
                **clock.laps,
                "time/step_s": clock.total,
                "memory/peak_gb": peak_bytes() / 1e9,
                "data/ordinal_first": contexts[0].ordinal,
                "data/visits_max": max(c.visit for c in contexts),
                "data/digest": data_digest(contexts, [r.positions for r in tally.pages]),
                "data/damaged": len(self.corpus.train.damaged),
            }
        )
        self._tell_damage()
        self.log.rollouts(step, tally.rows(self.model))
        self._guard(update.skipped, contexts)

    def _score(self, tree: ThoughtTree) -> Scores:
        with_context = self.config.objective.ntp_weight > 0
        temperature = self.config.thought.temperature
        return score(
            self.model,
            tree,
            temperature=temperature,
            with_context=with_context,
            with_collision=any(rewards.NEEDS[name].collision for name in self.config.reward.names),
        )

    def _judge(
        self, scores: Scores, tree: ThoughtTree, batch: tuple[Rollout, ...]
    ) -> tuple[Judgement, Elsewhere]:
        """What thoughts are worth, and how likely they were under the other weights at hand."""
        config, reference_PH, reference_M = self.config, None, None
        if self.reference and config.objective.kl_weight > 0:
            temperature = config.thought.temperature
            reference_PH, reference_M = self.reference.on_tree(tree, temperature)
        elif self.reference and config.baseline.rereads:
            reference_PH = self.reference.no_think(batch, config.reward.horizon)
        judged = judge(
            scores,
            tree,
            batch,
            config,
            reference_PH,
            reference_M,
            decode=self.decode,
            verdicts=self.ask(batch),
        )
        return judged, Elsewhere(sampler_logp(batch).to(self.model.device), reference_M)

    @torch.no_grad()
    def _judge_ahead(
        self, batches: list[tuple[Rollout, ...]]
    ) -> tuple[list[tuple[Judgement, Elsewhere]], Tensor | None]:
        """What `_judge` says of every microbatch once the rewards of all of them are known, and
        which groups count: a pass without gradients, or nothing where none is needed.
        """
        if not self.config.objective.needs_whole_step:
            return [], None
        found = []
        for i, batch in enumerate(batches):
            self.stop.check()
            self.log.phase("score", i, len(batches))
            tree = plant(self.model, batch, self.config.reward.horizon)
            found.append(self._judge(self._score(tree), tree, batch))
        usual_std = self.group_spread.mean if self.group_spread else 0.0
        judgements = over_step([judged for judged, _ in found], self.config, usual_std)
        counted_P = torch.cat([judged.counted_P for judged in judgements])
        return list(zip(judgements, [e for _, e in found], strict=True)), counted_P

    def _another_epoch(
        self, step: int, batches: list[tuple[Rollout, ...]], tally: Tally, clock: "Stopwatch"
    ) -> Update:
        """One more update over the same thoughts and advantages, at the clipped ratio.

        Stop requests wait: the weights have moved since the last step, so it has to be finished.
        """
        finite = True
        for i, batch in enumerate(batches):
            tree = plant(self.model, batch, self.config.reward.horizon)
            elsewhere = replace(tally.elsewhere[i], old_logp_M=tally.scores[i].thought_logp_M)
            judged = tally.judgements[i]
            part = loss(self._score(tree), tree, judged, tally.counts, self.config, elsewhere)
            clock.lap("time/forward_s")
            part.total.backward()
            clock.lap("time/backward_s")
            tally.clipped_tokens += float(part.clipped_tokens)
            finite = finite and bool(torch.isfinite(part.total))
        update = self.optimizer.step(step, loss_is_finite=finite)
        clock.lap("time/update_s")
        return update

    def _flop(self, tally: Tally) -> float:
        """Matrix products of the step, from the tokens that it had."""
        return step_flop(
            self.config,
            self.shape,
            tree=sum(tree_tokens(r, self.config.reward.horizon) for r in tally.rollouts),
            head_rows=tally.counts.head_rows(self.config),
            context=sum(len(r.context) for r in tally.rollouts),
            sampled=tally.counts.thought,
            asked=self.ask.num_tokens(tally.rollouts),
        )

    def _follow(self, tally: Tally) -> None:
        """What runs along with training: the average of the weights, the record of rewards."""
        if self.reference:
            self.reference.update(self.optimizer.masters)
        if self.record:
            self.record.observe(tally.pages, tally.reward_PG, tally.gain_PG)
        if self.replay:
            self.replay.observe(tally.pages, tally.gain_PG)
        if self.group_spread:
            self.group_spread.observe(tally.compared_PG)

    def comparison(self) -> dict[str, Any] | None:
        """Evaluation before and after training, side by side; None until both exist."""
        before, after = (_read_evaluation(self.config, n) for n in (0, self.config.run.steps))
        return compare(before, after, self.config.run.seed) if before and after else None

    def _guard(self, skipped: bool, contexts: list[Context]) -> None:
        """Say which ordinals a non-finite step lost; stop after a streak of them."""
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if not skipped:
            return
        fresh = [c.ordinal for c in contexts if c.replay_of is None]
        ordinals = f"{fresh[0]} … {fresh[-1]}"
        self.log.message(
            f"loss or gradient is not finite; weights and moments are unchanged, ordinals "
            f"{ordinals} were not trained",
            "warning",
        )
        if self.skipped_in_a_row >= self.config.optim.max_skipped_steps:
            raise Diverged(
                f"{self.skipped_in_a_row} steps in a row were not finite; lower optim.lr or look "
                f"at the rollouts of the last steps in {self.config.run.dir / 'rollouts'}"
            )

    def _tell_damage(self) -> None:
        damaged = self.corpus.train.damaged
        for _, damage in damaged[self.damage_told :]:
            self.log.message(f"set aside and replaced: {damage}", "warning")
        self.damage_told = len(damaged)

    def _evaluate_if_due(self, step: int) -> None:
        """Before and after training, and every so often; an existing result is kept."""
        section, last = self.config.evaluation, self.config.run.steps
        regular = section.every_steps > 0 and step % section.every_steps == 0
        due = section.enabled and (regular or step in (0, last))
        if not due or _read_evaluation(self.config, step) is not None:
            return
        assert self.corpus.heldout is not None
        self.log.message(f"evaluating on held-out pages, after step {step}")
        result = evaluate(
            self.model,
            self.corpus.heldout_contexts(self.config.evaluation.docs),
            self.config,
            reference=_read_evaluation(self.config, 0),
            check=self.stop.check,
            progress=self.log.phase,
        )
        if self.config.evaluation.reused_docs:
            result["reused"] = self._evaluate_reused(result)
        facts = {
            "step": step,
            "seed": self.config.run.seed,
            "config_digest": self.config.digest(),
            "data_digest": self.corpus.manifest.digest,
            "heldout_digest": self.corpus.heldout_digest,
        }
        path = evaluation_path(self.config, step)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {**facts, **result})
        low, high = result["gain/ci95"]
        self.log.message(
            f"held-out: nll {result['nll/no_think']:.3f} → {result['nll/think']:.3f} with "
            f"thinking, gain {result['gain/mean']:+.3f} [{low:+.3f}, {high:+.3f}] nats per token"
        )

    def _evaluate_reused(self, fresh: dict[str, Any]) -> dict[str, Any]:
        """The same on contexts that are trained on, and how much more thinking is worth there."""
        contexts = self.corpus.reused_contexts(self.config.evaluation.reused_docs)
        found = evaluate(
            self.model, contexts, self.config, check=self.stop.check, progress=self.log.phase
        )
        del found["pages"]
        before = _read_evaluation(self.config, 0)
        learnt = memorised(found, fresh, before)
        if learnt > MEMORISED:
            self.log.message(
                f"memorisation: without a thought, the loss on reused pages has fallen by "
                f"{learnt:.2f} nats per token more than on fresh ones; train on more documents, "
                "for fewer steps, or with a lower objective.ntp_weight",
                "warning",
            )
        gap = found["gain/mean"] - fresh["gain/mean"]
        return {**found, "gain_over_fresh": gap, "memorised": learnt}

    def _save(self, step: int) -> None:
        self.log.phase("save", 0, 1)
        path = checkpoint.save(
            self.config.run.dir / "checkpoints",
            step,
            {
                "weights": self.optimizer.masters,
                "moments": self.optimizer.moments(),
                **{stem: part.tensors() for stem, part in self._companions().items()},
            },
            {
                "next_ordinal": fresh_contexts(self.config, step),
                "skipped_in_a_row": self.skipped_in_a_row,
                "config_digest": self.config.digest(),
                "data_digest": self.corpus.manifest.digest,
                "tokenizer_digest": tokenizer_digest(self.model.tokenizer),
                "data": self._data_state(step).as_dict(),
                "segments": self.segments,
                "torch": torch.__version__,
            },
            self.config.checkpoint.keep,
        )
        self.log.message(f"saved {path}")

    def _restore(self) -> int:
        """Steps done: those of the newest whole checkpoint, whose state is taken over."""
        folder = self.config.run.dir / "checkpoints"
        newest = checkpoint.newest_valid(folder, lambda text: self.log.message(text, "warning"))
        if newest is None:
            self.log.rewind(0)
            self.segments = segments({}, self._data_state(0), 0, newest, accept=True)
            return 0
        state = checkpoint.load_state(newest)
        step = int(state["step"])
        now = self._data_state(step)
        self.segments = segments(state, now, step, newest, accept=self.accept_data_change)
        self.corpus.train.stream.know(known_damage(state))
        if state["next_ordinal"] != fresh_contexts(self.config, step):
            raise CheckpointError(
                f"{newest} was trained with another data.docs_per_step or data.replay_docs"
            )
        self.optimizer.restore(
            checkpoint.load(newest, "weights"), checkpoint.load(newest, "moments")
        )
        for stem, part in self._companions().items():
            part.restore(checkpoint.load(newest, stem))
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
        self.log.rewind(step)
        self.log.message(f"resuming from {newest}: {step} of {self.config.run.steps} steps done")
        return step

    def _data_state(self, step: int) -> DataState:
        return self.corpus.state(
            tokenizer_digest(self.model.tokenizer),
            self.config.run.seed,
            fresh_contexts(self.config, step),
        )

    def _companions(self) -> dict[str, Reference | Record | Replay | GroupSpread]:
        """What a checkpoint holds besides weights and moments, where the config asks for it."""
        found: dict[str, Reference | Record | Replay | GroupSpread] = {}
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
        for warning in config.warnings():
            self.log.message(warning, "warning")
        short = f", {corpus.train.num_too_short} too short" if corpus.train.num_too_short else ""
        heldout = corpus.heldout.num_documents if corpus.heldout else 0
        self.log.message(
            f"{config.run.name}: {config.model.spec} ({self.model.num_parameters / 1e6:.0f}M "
            f"parameters, {config.model.dtype}, {self.model.device}), corpus "
            f"{corpus.manifest.digest[:12]} with {corpus.train.num_documents} documents to train "
            f"on{short} and {heldout} held out, steps {done + 1} … {config.run.steps}"
            if done < config.run.steps
            else f"{config.run.name}: all {done} steps are done; raise run.steps to go on"
        )
        self.log.begin(done, config.run.steps)

    def _facts(self) -> dict[str, object]:
        return {
            "name": self.config.run.name,
            "seed": self.config.run.seed,
            "config_digest": self.config.digest(),
            "data_digest": self.corpus.manifest.digest,
            "tokenizer_digest": tokenizer_digest(self.model.tokenizer),
            "segments": self.segments,
            "model": self.config.model.spec,
            "num_parameters": self.model.num_parameters,
        }


class Stopwatch:
    """Seconds by name; a name may be lapped more than once."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start


def evaluation_path(config: Config, step: int) -> Path:
    return config.run.dir / "eval" / f"step_{step:08d}.json"


def memorised(
    reused: dict[str, Any], fresh: dict[str, Any], before: dict[str, Any] | None
) -> float:
    """How much more the no-think loss of reused pages has fallen than that of fresh ones.

    Nats per token of whole pages, since the evaluation before training; 0 there. The pages are
    others, so only the changes can be compared.
    """
    if before is None:
        return 0.0
    pairs = [(fresh, before), (reused, before["reused"])]
    on_fresh, on_reused = (now["reading"]["nll"] - then["reading"]["nll"] for now, then in pairs)
    return float(on_fresh - on_reused)


def _read_evaluation(config: Config, step: int) -> dict[str, Any] | None:
    path = evaluation_path(config, step)
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(result, dict)
    return result
