"""Weights over many ranks: FSDP2's shards of the float32 masters, one gathered copy to compute on.

The copy is gathered once a step. In between every rank samples and computes as if it were alone, so
ranks may decode other numbers of tokens and cut their share into other numbers of microbatches;
gradients add up locally, and the last backward of the step sums them over the ranks.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rntp.errors import ConfigError


def shard(hf: PreTrainedModel, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Split the parameters of every layer, and those outside of layers, over the mesh; in place.

    dtype: that the gathered copy computes in. Gradients are summed over the ranks, not averaged (a
    loss is divided by the counts of all of them), in the masters' type.
    """
    master = next(hf.parameters()).dtype
    policy = MixedPrecisionPolicy(
        param_dtype=dtype if dtype != master else None,
        reduce_dtype=master,
        # Inputs are ids and hidden states of the right type; a cast would copy the attention that
        # is passed along, which remembers keys and values.
        cast_forward_inputs=False,
    )
    for layer in layers(hf):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(hf, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    # The trunk runs without the model's own forward, and of the head only the weight is used (see
    # rntp.model). Both belong to the root's group with the embedding they may be tied to. As a
    # forward method of the root, the trunk has the hooks that reduce this group when the backward
    # is over, whichever way its gradients came.
    hf.rntp_trunk = hf.base_model.forward  # type: ignore[assignment]
    register_fsdp_forward_method(hf, "rntp_trunk")
    for part in parts(hf):
        part.set_reshard_after_backward(False, recurse=False)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    return next(parts(model), None) is not None


def parts(model: nn.Module) -> Iterator[FSDPModule]:
    """The modules whose parameters are gathered together; none if the model is not sharded."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def gather_weights(model: nn.Module) -> None:
    """Make the copy that computes equal to the shards, on every rank; a collective."""
    for part in parts(model):
        part.reshard()
        part.unshard()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a shard, on every rank (a collective); others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(master: Tensor, full: Tensor) -> Tensor:
    """A full tensor, split over the ranks as `master` is; a copy of it if that is not split."""
    if isinstance(master, DTensor):
        return distribute_tensor(full, master.device_mesh, master.placements)
    return full.to(master.device).clone()


def layers(hf: PreTrainedModel) -> list[nn.Module]:
    """The model's decoder layers. Raises ConfigError if they are not a list of the right length."""
    number = hf.config.get_text_config().num_hidden_layers
    for module in hf.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    raise ConfigError(
        f"{type(hf).__name__} has no list of its {number} layers, so it can neither be split over "
        "ranks nor forget activations; train it in one process without "
        "parallel.activation_checkpointing"
    )


def checkpoint_activations(hf: PreTrainedModel) -> None:
    """Keep only the inputs of every layer for the backward, which computes the rest again."""
    for layer in layers(hf):
        layer.forward = _Recomputed(layer.forward)


class _Recomputed:
    """A forward that is run again in the backward. Sampling, without gradients, is left alone: it
    writes down keys and values, once.
    """

    def __init__(self, forward: Any) -> None:
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        # Nothing in a layer is random: what is evaluated has no dropout.
        return checkpoint(
            self._forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
