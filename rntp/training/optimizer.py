"""Master weights, AdamW, schedule, clipping and the non-finite guard."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rntp.config import Config, Optim
from rntp.model import LanguageModel
from rntp.model.opening import try_forward
from rntp.model.sharding import checkpoint_activations, gather_weights, shard, whole
from rntp.runtime.faults import fault_point
from rntp.runtime.ranks import Ranks

EPS = 1e-8  # AdamW: added to the root of the second moment


@dataclass(frozen=True)
class Update:
    """What `Optimizer.step` did. grad_norm: before clipping. lr: of this step."""

    grad_norm: float
    lr: float
    skipped: bool


def learning_rate(config: Optim, step: int, total_steps: int) -> float:
    """Rate of step 1 … total_steps: linear warm-up, then constant or a cosine to the minimum."""
    warmup = config.warmup_steps
    if step <= warmup:
        return config.lr * step / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    share = (step - warmup) / max(1, total_steps - warmup)
    low = config.schedule.get("min_lr_fraction")
    return config.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


class Optimizer:
    """AdamW on float32 master weights of a model that computes in `dtype`.

    With a lower compute type the model's parameters become a copy: every gradient is moved to the
    float32 master as soon as it exists (so microbatches add up in float32 and only one parameter's
    gradient is held twice), and the copy is refreshed after the update. Otherwise the parameters
    are the masters.

    Over many ranks (`rntp.model.sharding`) the shards are the masters, and FSDP keeps the copy:
    every rank updates its own share, and all take every step together.
    """

    def __init__(
        self, model: nn.Module, config: Optim, *, dtype: torch.dtype, total_steps: int
    ) -> None:
        self.config = config
        self.total_steps = total_steps
        self._model = model
        self._parameters = dict(model.named_parameters())
        self.masters: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            self.masters[name] = parameter
            if dtype == torch.bfloat16 and not isinstance(model, FSDPModule):
                self.masters[name] = parameter.detach().float().clone()
                parameter.data = parameter.data.to(dtype)
                if parameter.requires_grad:  # some models have frozen ones
                    parameter.register_post_accumulate_grad_hook(self._collector(name))
        decayed = [p for p in self.masters.values() if p.ndim >= 2]
        kept = [p for p in self.masters.values() if p.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.adamw.weight_decay},
                {"params": kept, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=config.adamw.betas,
            eps=EPS,
            fused=True,
        )
        self._refresh()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add a microbatch's gradient to the step's. last: of this rank's; there ranks add up."""
        if isinstance(self._model, FSDPModule):
            self._model.set_requires_gradient_sync(last)
        gradient = torch.ones_like(loss)
        fault_point("gradient", gradient)
        loss.backward(gradient)

    def step(self, step: int, *, loss_is_finite: bool) -> Update:
        """Update with the collected gradients, and drop them.

        A loss or gradient that is not finite leaves weights and moments bit-unchanged.
        """
        rate = learning_rate(self.config, step, self.total_steps)
        gradients = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        nn.utils.clip_grads_with_norm_(self.masters.values(), self.config.max_grad_norm, norm)
        skipped = not (loss_is_finite and bool(torch.isfinite(norm)))
        if not skipped:
            for group in self._adamw.param_groups:
                group["lr"] = rate
            self._adamw.step()
            self._refresh()
        self._adamw.zero_grad(set_to_none=True)
        return Update(float(norm), rate, skipped)

    def moments(self) -> dict[str, Tensor]:
        """First and second moments and step count of every master, by name; zeros at first."""
        found = {}
        for name, master in self.masters.items():
            state = self._adamw.state[master]
            if not state:  # what AdamW itself would begin with
                state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
                state["exp_avg"] = torch.zeros_like(master.detach())
                state["exp_avg_sq"] = torch.zeros_like(master.detach())
            for key, value in state.items():
                found[f"{key}.{name}"] = value
        return found

    def restore(self, fill: Callable[[str, Mapping[str, Tensor]], None]) -> None:
        """Take back masters and moments: `fill("weights", …)` and `fill("moments", …)` write them
        in place; see `rntp.run.checkpoint.load_into`.
        """
        fill("weights", self.masters)
        fill("moments", self.moments())
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        gather_weights(self._model)
        for name, parameter in self._parameters.items():
            if self.masters[name] is not parameter:
                parameter.copy_(self.masters[name])

    def _collector(self, name: str) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            master, gradient = self.masters[name], parameter.grad
            assert gradient is not None
            if master.grad is None:
                master.grad = gradient.float()
            else:
                master.grad += gradient
            parameter.grad = None

        return collect


def open_optimizer(
    model: LanguageModel, config: Config, ranks: Ranks, *, recompute: bool
) -> Optimizer:
    """Make a model ready to be trained: over the ranks, in its compute type, with its optimizer.

    recompute: layers keep only their inputs for the backward. Raises ConfigError where the model
    does not compute in that type.
    """
    dtype = getattr(torch, config.model.dtype)
    if recompute:
        checkpoint_activations(model.hf)
    if ranks.mesh is not None:
        shard(model.hf, ranks.mesh, dtype)
    optimizer = Optimizer(model.hf, config.optim, dtype=dtype, total_steps=config.run.steps)
    try_forward(config, model)
    return optimizer
