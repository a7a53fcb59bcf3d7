"""Weights of a policy version in a store: safetensors, and a manifest that is written last.

What samplers compute with is what the trainer computes with, in its type: version v is the policy
after step v. What a placement policy has learnt by then travels along, since placing is part of
sampling. A version's folder is named by a digest of all its bytes, so that a run that went back and
made another version v never mixes with the first.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor

from rntp.model import LanguageModel
from rntp.model.mixing import without_mixing
from rntp.model.thought_tree import ROOT, TokenTree
from rntp.rng import uniform
from rntp.rollout.store.files import Files
from rntp.rollout.store.layout import DIGITS, get_facts, put_facts, weights_name
from rntp.rollout.store.sealed import Refused

MANIFEST = "manifest.json"
PLACEMENT = "placement.safetensors"
_FILE_BYTES = 256 << 20  # of one file of weights, about
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


def publish(
    files: Files,
    version: int,
    weights: Mapping[str, Tensor],
    placement: Mapping[str, Tensor],
    probe: Tensor,
    key: bytes,
) -> str:
    """Write a version, and return its digest. What is there already is not written again.

    probe: the canary of these weights. Raises OSError.
    """
    parts = {name: safetensors.torch.save(part) for name, part in _parts(weights)}
    if placement:
        parts[PLACEMENT] = safetensors.torch.save({k: t.contiguous() for k, t in placement.items()})
    table = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in parts.items()
    }
    digest = _digest(table)
    folder = weights_name(version, digest)
    if files.has(f"{folder}/{MANIFEST}"):
        return digest
    for name, data in parts.items():
        files.put(f"{folder}/{name}", data)
    facts = {"version": version, "files": table, "canary": probe.tolist()}
    put_facts(files, f"{folder}/{MANIFEST}", facts, key)
    return digest


def fetch(files: Files, version: int, digest: str, key: bytes) -> Published:
    """Read a version, every byte against its hash. Raises Refused and OSError."""
    folder = weights_name(version, digest)
    facts = get_facts(files, f"{folder}/{MANIFEST}", key)
    if facts is None:
        raise Refused("torn", f"{folder} has no manifest")
    table = facts.get("files", {})
    if facts.get("version") != version or _digest(table) != digest:
        raise Refused("foreign", f"the manifest of {folder} is of other weights")
    weights: dict[str, Tensor] = {}
    placement: dict[str, Tensor] = {}
    for name, entry in table.items():
        data = files.get(f"{folder}/{name}")
        if data is None or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise Refused("torn", f"{folder}/{name} has not the bytes of its manifest")
        (placement if name == PLACEMENT else weights).update(safetensors.torch.load(data))
    return Published(version, digest, weights, placement, torch.tensor(facts["canary"]))


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


def _parts(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Files of about `_FILE_BYTES`, in the order of the names."""
    part: dict[str, Tensor] = {}
    number = size = 0
    for name, tensor in weights.items():
        part[name] = tensor.cpu().contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= _FILE_BYTES:
            yield f"weights_{number:04d}.safetensors", part
            part, number, size = {}, number + 1, 0
    if part:
        yield f"weights_{number:04d}.safetensors", part


def _digest(table: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:DIGITS]
