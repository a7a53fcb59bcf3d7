"""Other people's kernels, where they are installed; named with the reason where not."""

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from rntp.bench.clock import reason_of

if TYPE_CHECKING:  # the heads are compared without what the trainer needs
    from rntp.bench.job import Job

CHOICES = ("all", "none", "usual", "trl", "torch", "liger", "cce")
_OF_CHOICE = {
    "usual": ("unshared loop", "plain autograd"),
    "trl": ("TRL",),
    "torch": ("torch ",),
    "liger": ("liger",),
    "cce": ("cut-cross-entropy",),
}
# Thoughts in one forward of a trainer that does not share.
ROWS = 8

Providers = dict[str, Callable[[], object]]
Skipped = dict[str, str]


def is_chosen(name: str, chosen: Sequence[str]) -> bool:
    """Whether a provider is among the peers that were asked for (`CHOICES`)."""
    return "all" in chosen or any(
        name.startswith(start) for choice in chosen for start in _OF_CHOICE.get(choice, ())
    )


def heads(
    hidden: Tensor, weight: Tensor, targets: Tensor, signs: Tensor
) -> tuple[Providers, Skipped]:
    """Per-token log-probs with signed gradients; none of these gives an entropy."""
    found: Providers = {}
    skipped: Skipped = {}
    if hasattr(F, "linear_cross_entropy"):
        found["torch F.linear_cross_entropy"] = _backward(
            lambda: -F.linear_cross_entropy(hidden, weight, targets, reduction="none"), signs
        )
    else:
        skipped["torch F.linear_cross_entropy"] = f"not in torch {torch.__version__}"
    if not hidden.is_cuda:
        for name in ("liger-kernel", "cut-cross-entropy"):
            skipped[name] = "its kernels need a CUDA device"
        return found, skipped
    if importlib.util.find_spec("cut_cross_entropy") is None:
        skipped["cut-cross-entropy"] = "not installed"
    else:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy, exact"] = _backward(
            lambda: -linear_cross_entropy(
                hidden, weight, targets, reduction="none", impl="cce_exact"
            ),
            signs,
        )
    if importlib.util.find_spec("liger_kernel") is None:
        skipped["liger-kernel"] = "not installed"
    else:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        found["liger-kernel"] = _backward(
            lambda: -liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="none"),
            signs,
        )
    return found, skipped


def plain_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    shape: Callable[[Tensor], Tensor] = lambda raw: raw,
) -> tuple[Tensor, Tensor]:
    """Compute log-prob and entropy, [N] each, as trainers write it: logits in the model's type, in
    full, then float32. shape: what the head does to them (scale, soft cap)."""
    logp = torch.log_softmax(shape(F.linear(hidden, weight, bias).float()), dim=-1)
    entropy = -(logp.exp() * logp).sum(dim=-1)
    return logp.gather(1, targets[:, None])[:, 0], entropy


def steps(job: "Job") -> tuple[Providers, Skipped]:
    """Whole steps of other trainers."""
    name = "TRL GRPOTrainer"
    if importlib.util.find_spec("trl") is None:
        return {}, {name: "not installed"}
    if job.sizes.branches % ROWS:
        return {}, {name: f"it takes pieces of {ROWS} thoughts, and {job.sizes.branches} are none"}
    if job.continuation_weight:
        return {}, {name: "its loss has no term on continuations"}
    if job.sizes.window >= 0:
        return {}, {name: "it reads continuations behind whole prompts"}
    try:
        from trl import GRPOTrainer, __version__  # noqa: F401

        from rntp.bench.trl_loop import TrlLoop
    except Exception as error:  # it imports much that may be too old or too new for it
        return {}, {name: reason_of(error)}

    dtype = str(job.model.head.dtype).removeprefix("torch.")
    ways: dict[str, Callable[[], TrlLoop]] = {
        f"weights in {dtype}": lambda: TrlLoop(job, ROWS),
        "as it comes": lambda: TrlLoop(job, ROWS, masters=True, checkpointing=True),
    }
    if dtype != "float32":
        ways["weights in float32"] = lambda: TrlLoop(job, ROWS, masters=True)
    found: Providers = {}
    skipped: Skipped = {}
    for way, make in ways.items():
        try:
            found[f"{name} {__version__}, {way}"] = make()
        except Exception as error:
            skipped[f"{name} {__version__}, {way}"] = reason_of(error)
    return found, skipped


def _backward(logp: Callable[[], Tensor], signs: Tensor) -> Callable[[], float]:
    def work() -> float:
        total = (signs * logp()).sum()
        total.backward()
        return float(total.detach())

    return work
