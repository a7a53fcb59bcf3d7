"""Decoding and a training step against the unshared way: each raises where they differ."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rntp_kernels.tree_attention import selection
from torch import Tensor

from gpu_stages.setting import Setting
from rntp.bench.job import Job
from rntp.bench.run import run
from rntp.model import LanguageModel, cast_parameters
from rntp.objective.forward import build_tree, forward
from rntp.objective.rewards_and_advantages import sampler_logp
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.sampling import Draw, draw
from rntp.types import Thought


def decode(setting: Setting) -> dict[str, Any]:
    """Compare decoding as a graph, in the growing loop, and by a scoring forward."""
    model, sizes = setting.small_model(), setting.small
    job = Job(model, sizes)

    def sample(fixed: bool, **more: Any) -> list[Thought]:
        settings = {"thoughts": sizes.thoughts, "budget": sizes.budget, **more}
        engine = InProcessEngine(
            model,
            answer_tokens=3,
            temperature=1.0,
            seed=0,
            slots=sizes.context,
            docs_per_batch=1,
            fixed_shapes=fixed,
            **settings,
        )
        return [
            t
            for _ in range(2)  # the second time from the same storage, on CUDA by the graph
            for rollout in engine.sample(job.contexts, lambda *_: job.positions)
            for group in rollout.thoughts
            for t in group
        ]

    found = {"thoughts that differ": _differing(sample(False), sample(True))}
    # Most end early, so that the others go on in narrower lanes.
    ending = {"thoughts": 16, "budget": 40, "draw": _ends_soon(model.think_close_id)}
    with _rows_of_forwards(model) as rows:
        fixed = sample(True, **ending)
    branches = sizes.positions * 16
    if min(rows) > branches // 2:
        raise AssertionError(f"all {branches} branches went on to the end: {sorted(rows)}")
    found["thoughts that differ, in lanes"] = _differing(sample(False, **ending), fixed)
    gaps = {}
    for dtype in setting.types:
        cast_parameters(model.hf, dtype)
        rollouts = Job(model, setting.small).sample()
        with torch.no_grad():
            tree = build_tree(model, rollouts, setting.small.horizon)
            outputs = forward(model, tree, temperature=1.0)
        sampled = sampler_logp(rollouts)
        gaps[_name(dtype)] = float((outputs.thought_logp_M.cpu() - sampled).abs().mean())
    bound = {"float32": 1e-4, "bfloat16": 0.1}
    for name, gap in gaps.items():
        if not gap <= bound[name]:
            raise AssertionError(f"sampler and trainer are {gap:.2g} nats apart in {name}")
    return {**found, "sampler gap, nats": gaps}


def _differing(growing: list[Thought], fixed: list[Thought]) -> str:
    """Count thoughts that differ: n of N. Raises AssertionError if they are more than a few."""
    different = sum(
        not (torch.equal(a.sampled_ids, b.sampled_ids) and torch.equal(a.answer_ids, b.answer_ids))
        for a, b in zip(growing, fixed, strict=True)
    )
    # Rounding may move a draw across a border between two tokens, but not many.
    if different > 0.05 * len(growing):
        raise AssertionError(f"{different} of {len(growing)} thoughts differ from the growing loop")
    return f"{different} of {len(growing)}"


def _ends_soon(close_id: int) -> Draw:
    """Make draws of a model that says this token one time in eight, wherever it is."""

    def from_biased(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        biased = logits.clone()
        biased[:, close_id] = biased.float().logsumexp(dim=1).sub(2).to(biased.dtype)
        return draw(biased, uniforms, temperature)

    return from_biased


@contextmanager
def _rows_of_forwards(model: LanguageModel) -> Iterator[set[int]]:
    """Record the numbers of rows that go through the trunk; a graph counts when it is captured."""
    rows: set[int] = set()
    hook = model.hf.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.add(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()


def step(setting: Setting) -> dict[str, Any]:
    """Check loss and gradients of a step against the unshared loop, in both types."""
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
