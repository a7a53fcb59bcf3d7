"""From a config to its model, checked against the lengths that it will see."""

import math
from dataclasses import replace

import torch

from rntp.config import Config
from rntp.errors import ConfigError, is_out_of_memory
from rntp.model.language_model import (
    LanguageModel,
    cast_parameters,
    load_model,
    pick_device,
)
from rntp.model.mixing import START
from rntp.model.routing import routers
from rntp.model.thought_tree import ROOT, TokenTree


def open_model(config: Config) -> LanguageModel:
    """The model of a config, checked against the lengths that it will see.

    Weights are float32 (float64 if asked for); the optimizer makes the compute copy.
    """
    dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
    model = load_model(
        config.model.spec,
        think_open=config.model.think_open,
        think_close=config.model.think_close,
        dtype=dtype,
        device=pick_device(config.model.device),
        sharing=config.model.sharing,
        span=config.span_tokens,
        tool_markers=config.thought.tools.markers if config.thought.tools.use else (),
    )
    if model.plain is not None:
        most = config.parallel.tokens_per_microbatch
        model.plain = replace(model.plain, most_tokens=most)
    if config.objective.router_weight > 0 and not routers(model.hf):
        raise ConfigError(
            f"objective.router_weight {config.objective.router_weight:g} balances experts, and "
            f"transformers records no router of {config.model.spec}; set it to 0"
        )
    if config.reading.window is not None:
        _ = model.start_id  # readings begin with it
    if config.reading.mixing:
        weight = config.reading.mixing
        start = START if weight is True else math.log(weight / (1 - weight))
        model.add_mixing(config.run.seed, start)
    interleaved = config.placement.interleaved
    if config.span_tokens > model.max_span:
        with_ = "interleaved thoughts" if interleaved else "thought, continuation and answer"
        third = "placement.positions_per_doc" if interleaved else "thought.answer_tokens"
        raise ConfigError(
            f"data.context_tokens {config.data.context_tokens} with {with_} can reach "
            f"{config.span_tokens} positions, and {config.model.spec} sees {model.max_span}; lower "
            f"data.context_tokens, thought.thought_tokens or {third}"
        )
    return model


def open_to_compute(config: Config) -> LanguageModel:
    """The model of a config in the type that it computes in: for what trains nothing."""
    model = open_model(config)
    cast_parameters(model.hf, getattr(torch, config.model.dtype))
    return model


@torch.no_grad()
def try_forward(config: Config, model: LanguageModel) -> None:
    """One small forward of the copy that computes. Raises ConfigError where it fails in its type:
    some models have buffers of float32 that do not go with weights of another."""
    try:
        model.logits(TokenTree.build([(torch.arange(1, 9), ROOT, 0)]).hidden(model))
    except (RuntimeError, ConfigError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{type(model.hf).__name__} does not compute in model.dtype {config.model.dtype} "
            f"({str(error).splitlines()[0][:300]}); set model.dtype to float32"
        ) from error
