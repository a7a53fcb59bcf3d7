"""A device that is not the CPU, without one: its tensors hold numbers on the CPU and say "meta".

An operation on its tensors and CPU tensors together fails, as it does on a GPU, where CUDA lets
pass only scalars, indices and copies. Numbers are those of the CPU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("meta")
# CUDA takes these over from the CPU by itself.
# Names of operations that went from one to the other so far: on a GPU the host may have to wait.
crossings: list[str] = []
_MAY_MIX = ("aten.index.Tensor", "aten.index_put_.default", "aten._to_copy", "aten.copy_")


class OtherLogprobs(Tensor):
    """`held`: the numbers, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OtherLogprobs":
        return Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def tolist(self) -> list:
        return self.held.tolist()

    def numpy(self):
        raise TypeError("can't convert a tensor of the device to numpy")

    def __format__(self, spec: str) -> str:
        return format(self.held.item(), spec)


class Pretended(TorchDispatchMode):
    """Inside, `device="meta"` is the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def __enter__(self):
        # These two build their tensor where no mode sees it.
        self._real = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}
        for name, real in self._real.items():
            setattr(torch, name, _placed(real))
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        for name, real in self._real.items():
            setattr(torch, name, real)
        super().__exit__(*exception)


def move(module: nn.Module) -> None:
    """Parameters and buffers to the device, in place; shared ones stay shared."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                there = moved.setdefault(id(parameter), nn.Parameter(OtherLogprobs(parameter.data)))
                part._parameters[name] = there
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else OtherLogprobs(buffer)


def _placed(real: Any) -> Any:
    def build(*args: Any, device: Any = None, **more: Any) -> Tensor:
        made = real(*args, **more)
        there = device is not None and torch.device(device) == DEVICE
        return (
            OtherLogprobs(made.detach()) if there and not isinstance(made, OtherLogprobs) else made
        )

    return build


def _run(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    given: list[OtherLogprobs] = []
    of_cpu: list[Tensor] = []

    def lower(x: Any) -> Any:
        if isinstance(x, OtherLogprobs):
            given.append(x)
            return x.held
        if isinstance(x, Tensor) and x.dim():
            of_cpu.append(x)
        return x

    low_args, low = tree_map(lower, (args, kwargs))
    asked = low.get("device")
    if given and of_cpu and not str(function).startswith(_MAY_MIX):
        shapes = [tuple(x.shape) for x in of_cpu]
        raise RuntimeError(f"{function} of tensors on the device and on the CPU {shapes}")
    there = torch.device(asked) == DEVICE if asked is not None else bool(given)
    if (of_cpu and there) or (given and not there):
        crossings.append(str(function))
    if asked is not None:
        low["device"] = torch.device("cpu")
    found = function(*low_args, **low)
    if str(function).startswith("aten.copy_"):
        return args[0]
    return tree_map(lambda x: _raised(x, given), found) if there else found


def _raised(x: Any, given: list[OtherLogprobs]) -> Any:
    if not isinstance(x, Tensor) or isinstance(x, OtherLogprobs):
        return x
    # What works in place gives back the same tensor.
    same = [own for own in given if own.held is x]
    return same[0] if same else OtherLogprobs(x)
