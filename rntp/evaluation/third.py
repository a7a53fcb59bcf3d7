"""A third model, neither policy nor its start, to say which tokens are hard.

Deciles of a model's own loss select on its own noise; those of another model do not.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import cast_parameters, load_model
from rntp.model.microbatches import microbatches
from rntp.model.tokenizer import load_tokenizer, tokenizer_digest
from rntp.objective.forward import build_tree, forward
from rntp.rollout import Check
from rntp.types import Rollout


def check_third(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError unless `evaluation.decile_model` reads the same token ids as the model."""
    spec = config.evaluation.decile_model
    if not spec:
        return
    there, here = tokenizer_digest(load_tokenizer(spec)), tokenizer_digest(tokenizer)
    if there != here:
        raise ConfigError(
            f"evaluation.decile_model {spec} has another tokenizer (digest {there}) than "
            f"{config.model.spec} ({here}), so it cannot rank the same tokens; name a model of the "
            'same tokenizer, or set it to ""'
        )


@torch.no_grad()
def third_losses(
    config: Config, rollouts: Sequence[Rollout], device: torch.device, check: Check
) -> list[list[float]]:
    """Its loss on the continuation of each position in order, without a thought: nats, [P][H]."""
    model = load_model(
        config.evaluation.decile_model,
        think_open=config.model.think_open,
        think_close=config.model.think_close,
        device=device,
        span=config.span_tokens,
    )
    cast_parameters(model.hf, getattr(torch, config.model.dtype))
    horizon, found = config.reward.horizon, []
    bare = [replace(r, thoughts=((),) * len(r.positions)) for r in rollouts]
    most = config.parallel.tokens_per_microbatch
    for piece in microbatches(bare, tokens=most, horizon=horizon, shares=model.shares):
        check()
        scores = forward(model, build_tree(model, piece, horizon), temperature=1.0)
        counts = [r.context.num_scored(horizon) for r in piece for _ in r.positions]
        rows = (-scores.no_think_logp_PH).tolist()
        found += [row[:count] for row, count in zip(rows, counts, strict=True)]
    return found
