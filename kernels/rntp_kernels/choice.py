"""What choosing an implementation takes, whichever function it is for."""

import importlib.util
import os
from collections.abc import Sequence
from functools import cache

from torch import Tensor


def requested(asked: str, override: str, names: Sequence[str]) -> str:
    """Resolve the name asked for; `auto` is what the environment variable `override` says.

    Raises ValueError for one that is not among `names`.
    """
    if asked == "auto":
        asked = os.environ.get(override, "auto")
    if asked not in names:
        raise ValueError(
            f"no implementation {asked!r}; there are {', '.join(names)} (see {override})"
        )
    return asked


@cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def has_flash() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def interpreted() -> bool:
    """Tell whether Triton kernels run in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def require_agreement(
    what: str,
    labels: Sequence[str],
    own: Sequence[Tensor],
    usual: Sequence[Tensor],
    exact: Sequence[Tensor],
    remedy: str,
) -> None:
    """Raise RuntimeError if `own` is farther from `exact` than ten times plain PyTorch in the same
    type is, and 1e-4 of its norm. A kernel that is wrong on this device, or with this version of
    its compiler, must not train anybody's model.

    own, usual, exact: tensors in float64, in the order of `labels`.
    """
    for label, mine, plain, true in zip(labels, own, usual, exact, strict=True):
        error, accepted = float((mine - true).norm()), float((plain - true).norm())
        if not error <= 10 * accepted + 1e-4 * float(true.norm()):
            raise RuntimeError(
                f"{what} is wrong: error of the {label} {error:.2g}, of plain PyTorch "
                f"{accepted:.2g}; {remedy} and report the versions of torch and triton"
            )
