"""Decoding and a training step against the unshared way: each raises where they differ."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rntp_kernels.tree_attention import selection

from gpu_stages.setting import Setting
from rntp.bench.job import Job
from rntp.bench.run import run
from rntp.model import cast_parameters
from rntp.rollout.inprocess import InProcessEngine
from rntp.step import plant, sampler_logp, score


def decode(setting: Setting) -> dict[str, Any]:
    """Decoding as a graph, in the growing loop, and by a scoring forward."""
    model = setting.small_model()
    job = Job(model, setting.small)

    def sample(fixed: bool, docs: int) -> list[Any]:
        sizes = setting.small
        engine = InProcessEngine(
            model,
            thoughts=sizes.thoughts,
            budget=sizes.budget,
            answer_tokens=3,
            temperature=1.0,
            seed=0,
            slots=sizes.context,
            docs_per_batch=docs,
            fixed_shapes=fixed,
        )
        return [
            t
            for _ in range(2)  # the second time from the same storage, on CUDA by the graph
            for rollout in engine.sample(job.contexts, lambda *_: job.positions)
            for group in rollout.thoughts
            for t in group
        ]

    growing, fixed = sample(False, 1), sample(True, 1)
    different = sum(
        not (torch.equal(a.sampled_ids, b.sampled_ids) and torch.equal(a.answer_ids, b.answer_ids))
        for a, b in zip(growing, fixed, strict=True)
    )
    # Rounding may move a draw across a border between two tokens, but not many.
    if different > 0.05 * len(growing):
        raise AssertionError(f"{different} of {len(growing)} thoughts differ from the growing loop")
    gaps = {}
    for dtype in setting.types:
        cast_parameters(model.hf, dtype)
        rollouts = Job(model, setting.small).sample()
        with torch.no_grad():
            scores = score(model, plant(model, rollouts, setting.small.horizon), temperature=1.0)
        sampled = sampler_logp(rollouts)
        gaps[_name(dtype)] = float((scores.thought_logp_M.cpu() - sampled).abs().mean())
    bound = {"float32": 1e-4, "bfloat16": 0.1}
    for name, gap in gaps.items():
        if not gap <= bound[name]:
            raise AssertionError(f"sampler and trainer are {gap:.2g} nats apart in {name}")
    return {"thoughts that differ": different, "of": len(growing), "sampler gap, nats": gaps}


def step(setting: Setting) -> dict[str, Any]:
    """Loss and gradients of a training step against the unshared loop, in both types."""
    found: dict[str, Any] = {}
    attentions = ["auto"] if setting.device == "cpu" else ["segmented", "triton"]
    for attention in attentions:
        with _environment(selection.OVERRIDE, attention):
            result = run(
                "tree", setting.small_model(), setting.small, dtype=setting.types[0], repeats=1
            )
        found[attention] = {key: result[key] for key in ("agreement", "rounding")}
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
