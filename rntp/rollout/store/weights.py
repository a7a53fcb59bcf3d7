"""Weights of a policy version, and the proof that a model computes with them.

What samplers compute with is what the trainer computes with, in its type: version v is the policy
after step v. What a placement policy has learnt by then travels along, since placing is part of
sampling. A version is named by a digest of all that, so that a run that went back and made another
version v never mixes with the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.mixing import without_mixing
from rntp.model.thought_tree import ROOT, TokenTree
from rntp.rng import uniform
from rntp.rollout.store.sealed import Refused

_SEQUENCES, _LENGTH = 4, 16  # of the canary
# Farthest that a canary's log-probs may lie apart on average, nats: rounding of other kernels.
CANARY_NATS = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Published:
    """Weights as they were fetched. canary: log-probs that the trainer computes with them, nats."""

    version: int
    digest: str
    weights: Mapping[str, Tensor]
    placement: Mapping[str, Tensor]
    canary: Tensor


def policy_weights(model: LanguageModel) -> dict[str, Tensor]:
    """The parameters that the model samples with, by name; tied ones once."""
    with without_mixing(model.hf):
        return {name: p.detach() for name, p in model.hf.named_parameters()}


@torch.no_grad()
def canary(model: LanguageModel, seed: int) -> Tensor:
    """Log-probs of fixed sequences under the model, float32 nats, [60]: to tell its weights by.

    Sequences of random tokens: what no model has learnt by heart moves with every weight.
    """
    ids = canary_ids(model, seed)
    tree = TokenTree.build([(row, ROOT, 0) for row in ids])
    hidden = tree.hidden(model).view(_SEQUENCES, _LENGTH, -1)[:, :-1].flatten(0, 1)
    logprob, _, _ = model.logprob(hidden, ids[:, 1:].flatten().to(model.device))
    return logprob.float().cpu()


def canary_ids(model: LanguageModel, seed: int) -> Tensor:
    """The canary's sequences, int64 [4, 16]; all but the first token of each are scored."""
    index = torch.arange(_SEQUENCES * _LENGTH).view(_SEQUENCES, _LENGTH)
    return (uniform(seed, "canary", index) * model.vocabulary).long()


def canary_distance(one: Tensor, other: Tensor) -> float:
    """Mean |Δ log p|, nats; NaN where either is not finite."""
    return float((one - other).abs().mean())


@torch.no_grad()
def take_exactly(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model that computes in their type. Raises Refused where they are of
    another model."""
    own = policy_weights(model)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise Refused("foreign", f"the weights are of another model: {', '.join(odd[:3])} …")
    for name, tensor in own.items():
        if (tensor.shape, tensor.dtype) != (weights[name].shape, weights[name].dtype):
            raise Refused("foreign", f"the weights are of another model: {name}")
        tensor.copy_(weights[name])


def check_loaded(model: LanguageModel, published: Published, seed: int) -> float:
    """Tell how far the model's canary lies from the trainer's, nats. Raises Refused where a model
    that has loaded weights does not compute with them."""
    distance = canary_distance(canary(model, seed), published.canary)
    bound = CANARY_NATS[model.head.dtype]
    if not distance <= bound:
        raise Refused(
            "weights",
            f"the canary of version {published.version} lies {distance:.3g} nats a token from the "
            f"trainer's, {bound:g} at most: these are not its weights",
        )
    for name, tensor in policy_weights(model).items():
        if not torch.equal(tensor.cpu(), published.weights[name]):
            raise Refused("weights", f"{name} is not what was loaded")
    return distance
