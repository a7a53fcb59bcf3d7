"""Weights that are not being trained: the frozen start, or a moving average of the policy.

They predict the continuation without a thought, for the rewards that compare with it, and the
tokens of thoughts, for a policy that is to stay close to them; and a frozen judge has them.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.forgetful import bare_logp
from rntp.model.sharding import whole
from rntp.model.thought_tree import ThoughtTree, TokenTree
from rntp.types import Rollout


class Reference:
    """A module of its own, so that nothing which happens here can change the live weights.

    model: the policy at the start, in the masters' type. dtype: that this one computes in. decay:
    of the average, a step (RLP, 2510.01265); None keeps the weights of the start. The average has
    the masters' precision: in bfloat16 nearly every move of 1 − decay would be lost to rounding.
    Where many ranks train, every one of them has all of these weights.
    """

    def __init__(self, model: LanguageModel, dtype: torch.dtype, decay: float | None) -> None:
        self.decay = decay
        self._model = replace(model, hf=copy.deepcopy(model.hf))
        self._parameters = dict(self._model.hf.named_parameters())
        self._kept: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(False)
            master = parameter.detach()
            parameter.data = master.to(dtype)
            self._kept[name] = parameter if decay is None or dtype == master.dtype else master

    @property
    def model(self) -> LanguageModel:
        """The model with these weights, whatever becomes of them; not to be changed."""
        return self._model

    @torch.no_grad()
    def no_think(
        self, rollouts: Sequence[Rollout], horizon: int, window: int | None = None
    ) -> Tensor:
        """log p(continuation token | context), nats, [P, H]: one forward of the contexts alone.

        window: tokens of the page, where no more of the context is read.
        """
        model, device = self._model, self._model.device
        if window is not None:
            return bare_logp(model, rollouts, window, horizon)
        contexts = TokenTree.build([(r.context.token_ids, -1, 0) for r in rollouts])
        starts = [
            first + position - 1
            for first, r in zip(contexts.layout.offsets[:-1], rollouts, strict=True)
            for position in r.positions
        ]
        rows = torch.tensor(starts, dtype=torch.int64)[:, None] + torch.arange(horizon)
        hidden = contexts.hidden(model).index_select(0, rows.flatten().to(device))
        logp, _, _ = model.logprob(hidden, contexts.token_ids[rows + 1].flatten().to(device))
        return logp.view(rows.shape)

    @torch.no_grad()
    def on_tree(self, tree: ThoughtTree, temperature: float) -> tuple[Tensor, Tensor]:
        """The same [P, H], and log π(sampled token), nats at the temperature, [M]: one forward."""
        model, device = self._model, self._model.device
        num_sampled = len(tree.thought_rows)
        rows = torch.cat([tree.thought_rows, tree.no_think_rows_PH.flatten()])
        targets = torch.cat([tree.thought_targets, tree.continuation_PH.flatten()])
        temperatures = torch.ones(len(rows))
        temperatures[:num_sampled] = temperature
        hidden = tree.tree.hidden(model).index_select(0, rows.to(device))
        logp, _, _ = model.logprob(hidden, targets.to(device), temperatures.to(device))
        return logp[num_sampled:].view(tree.no_think_rows_PH.shape), logp[:num_sampled]

    @torch.no_grad()
    def update(self, masters: Mapping[str, Tensor]) -> None:
        """φ ← φ + (1 − decay) · (θ − φ), after a step. Frozen weights stay."""
        if self.decay is None:
            return
        for name, average in self._kept.items():
            average.lerp_(whole(masters[name]), 1 - self.decay)
        self._refresh()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return self._kept

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave. Raises KeyError if names do not fit."""
        for name, kept in self._kept.items():
            kept.copy_(tensors[name])
        self._refresh()

    def _refresh(self) -> None:
        for name, parameter in self._parameters.items():
            if self._kept[name] is not parameter:
                parameter.copy_(self._kept[name])


def open_reference(model: LanguageModel, config: Config, dtype: torch.dtype) -> Reference | None:
    """The second set of weights that a config asks for, of the model at the start, or None."""
    weights = config.reference_weights
    if weights is None:
        return None
    return Reference(model, dtype, config.ema_decay if weights == "ema" else None)
