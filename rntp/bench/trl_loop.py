"""The same step in TRL's GRPOTrainer, with a reward that scores continuations with its own policy.

What is timed is the trainer's step up to its optimizer: sampling, rewards, log-probs, forward and
backward.
"""

import copy
import time
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from rntp.bench.clock import Elapsed
from rntp.bench.job import Job
from rntp.bench.unshared import PlainSequence, Unshared, own_attention
from rntp.model import cast_parameters


class TrlLoop:
    """Callable: one step, whose seconds it returns.

    rows: completions in one forward of the trainer. masters: weights in float32, and the type of
    the job by autocast, as TRL loads a model and as rntp trains (masters in float32); otherwise
    weights in the type of the job. checkpointing: of activations. Both are TRL's defaults.
    Raises ImportError where TRL is not installed.
    """

    def __init__(
        self, job: Job, rows: int = 8, *, masters: bool = False, checkpointing: bool = False
    ) -> None:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        halves = job.model.head.dtype == torch.bfloat16
        # A model of its own: what the trainer puts around its forward is there to stay.
        job = replace(job, model=replace(job.model, hf=copy.deepcopy(job.model.hf)))
        if masters:
            cast_parameters(job.model.hf, torch.float32)
        sizes, model = job.sizes, job.model
        self.job, self.unshared = job, Unshared(job, rows)
        prompts = self._prompts = [
            torch.cat([context.token_ids[:position], torch.tensor([model.think_open_id])])
            for context in job.contexts
            for position in job.positions
        ]

        class Trainer(GRPOTrainer):
            """Prompts are numbers: pages of random tokens do not survive a tokenizer."""

            def _tokenize_prompts(self, names: list[str]) -> tuple[list[list[int]], None, dict]:
                return [prompts[int(name)].tolist() for name in names], None, {}

        class Clock(TrainerCallback):
            started, seconds = 0.0, 0.0

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.started = time.perf_counter()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                self.seconds = time.perf_counter() - self.started

        self._clock, self._folder = Clock(), TemporaryDirectory()
        self._trainer = Trainer(
            model=model.hf,
            reward_funcs=self._reward,
            processing_class=model.tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(len(prompts))]}),
            callbacks=[self._clock],
            args=GRPOConfig(
                output_dir=self._folder.name,
                max_steps=1,
                learning_rate=0.0,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=sizes.branches // rows,
                num_generations=sizes.thoughts,
                max_completion_length=sizes.budget,
                generation_kwargs={"min_new_tokens": sizes.budget},
                temperature=1.0,
                top_k=0,
                beta=0.0,
                scale_rewards="none",
                shuffle_dataset=False,
                use_cpu=model.device.type == "cpu",
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                gradient_checkpointing=checkpointing,
                bf16=masters and halves,
            ),
        )

    def __call__(self) -> Elapsed:
        with own_attention(self.job):
            self._trainer.train()
        self.job.model.hf.zero_grad(set_to_none=True)
        return Elapsed(self._clock.seconds)

    def _reward(
        self, prompts: list[str], completion_ids: list[list[int]], **_: object
    ) -> list[float]:
        """Log-prob of each continuation behind its thought, nats; the baseline without a thought
        is the same in a group, and so cancels."""
        horizon, positions = self.job.sizes.horizon, self.job.positions
        close = torch.tensor([self.job.model.think_close_id])
        sequences = []
        for name, ids in zip(prompts, completion_ids, strict=True):
            document, k = divmod(int(name), len(positions))
            page = self.job.contexts[document].token_ids
            continuation = page[positions[k] : positions[k] + horizon]
            prompt: Tensor = self._prompts[int(name)]
            whole = torch.cat([prompt, torch.tensor(ids), close, continuation])
            sequences.append(PlainSequence(whole, len(prompt), len(ids)))
        return self.unshared.continuation_logp(sequences).sum(dim=1).tolist()
