"""Trunk, decoding and a whole step, beside the usual way to do them."""

from typing import Any

import torch

from gpu_stages.setting import Setting, visible_pairs
from rntp.bench.clock import interleaved, matmul_rate
from rntp.bench.job import Job
from rntp.bench.run import run
from rntp.model import cast_parameters
from rntp.objective.forward import build_tree
from rntp.training.estimate import Shape


def trunk(setting: Setting) -> dict[str, Any]:
    """Time forward and backward of all layers on a page's tree, each token counted once."""
    model = setting.model()
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    cast_parameters(model.hf, dtype)
    job = Job(model, setting.comb)
    tree = build_tree(model, tuple(job.rollouts), setting.comb.horizon).tree

    def work() -> None:
        model.hf.zero_grad(set_to_none=True)
        tree.hidden(model).float().square().mean().backward()

    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = interleaved({"trunk": work}, repeats=5, warm_up=2)["trunk"].median
    peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else 0
    text, shape = model.hf.config.get_text_config(), Shape.of(model.hf)
    tokens = tree.layout.num_tokens
    per_pair = 4.0 * text.head_dim * text.num_attention_heads * text.num_hidden_layers
    attended = 3.5 * per_pair * visible_pairs(tree.layout)
    rate = matmul_rate(dtype, torch.device(setting.device))
    return {
        "tokens": tokens,
        "ms": seconds * 1e3,
        "tokens per second": tokens / seconds,
        "share of the matmul ceiling, linear layers alone": 6.0
        * shape.trunk
        * tokens
        / seconds
        / rate,
        "share, linear layers and attention": (6.0 * shape.trunk * tokens + attended)
        / seconds
        / rate,
        "share, 6 FLOP a parameter with embeddings": 6.0
        * shape.parameters
        * tokens
        / seconds
        / rate,
        "peak memory, GB": peak / 1e9,
    }


def decode(setting: Setting) -> dict[str, Any]:
    """Time sampling a step's thoughts, against transformers' `generate`."""
    found = _bench("rollout", setting)
    tokens = found["facts"]["sampled tokens"]
    for provider in found["providers"].values():
        provider["tokens per second"] = tokens / provider["median_s"]
    return found


def step(setting: Setting) -> dict[str, Any]:
    """Time sampling, scoring and gradients, against the usual loop."""
    return _bench("step", setting)


def _bench(name: str, setting: Setting) -> dict[str, Any]:
    dtype = torch.float32 if setting.tiny else torch.bfloat16
    result = run(name, setting.model(), setting.step, dtype=dtype, repeats=2)
    return {k: v for k, v in result.items() if k not in ("environment", "model")}
