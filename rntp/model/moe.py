"""Mixtures of experts: how tokens are spread over experts, and the loss that keeps them spread.

The load-balancing loss (Switch Transformer, 2101.03961) is that of transformers'
`load_balancing_loss_func`: E Σ_e f_e P_e, where f_e is the share of (token, layer) pairs that chose
expert e, times the number of choices of each, and P_e the mean probability that the router's
softmax gives it; both over all layers together. Here they are over the tokens of a whole step that
have gradients, each once, however often a model that shares nothing computes them, and whatever the
microbatches and ranks: a loss balanced within microbatches would depend on how a step is cut, and
pulls harder (2501.11873). f has no gradient, so it is counted ahead and the rest adds up.

Routers that choose by more than their softmax (a balancing bias, groups of experts, sigmoids:
DeepSeek-V3, 2412.19437) say what they chose, and f is of that. Such biases (buffers or parameters,
`e_score_correction_bias`) are moved by a rule of their own in pretraining, not by a gradient, and
stay as they are here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rntp.model.routing import Routed


@dataclass(frozen=True)
class Routing:
    """Sums over the tokens of a forward; L layers of experts, E experts of the widest.

    choices_LE: how often each was chosen, int64. prob_LE: the routers' probabilities, float32 or
    better, with gradients where the forward had them. entropy_L: of these, nats, without.
    experts_L: how many a layer has. tokens: of each layer.
    """

    choices_LE: Tensor
    prob_LE: Tensor
    entropy_L: Tensor
    experts_L: Tensor
    tokens: int

    @classmethod
    def of(cls, routed: Sequence[Routed]) -> "Routing | None":
        """Sum up what the routers said, or None where there are none."""
        if not routed:
            return None
        most = max(layer.logits.shape[-1] for layer in routed)
        choices, probs, entropies = [], [], []
        for layer in routed:
            logits = layer.logits
            logp = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
            prob = logp.exp()
            choices.append(layer.chosen.flatten().bincount(minlength=most))
            probs.append(torch.nn.functional.pad(prob.sum(dim=0), (0, most - prob.shape[-1])))
            # A router that masks experts has log-probs of −inf there.
            entropies.append(-torch.where(prob > 0, prob * logp, 0).sum().detach())
        return cls(
            torch.stack(choices),
            torch.stack(probs),
            torch.stack(entropies),
            torch.tensor([layer.logits.shape[-1] for layer in routed]),
            tokens=len(routed[0].logits),
        )

    def detached(self) -> "Routing":
        """The same numbers without the graph, on the CPU, for the record."""
        return Routing(
            self.choices_LE.cpu(),
            self.prob_LE.detach().cpu(),
            self.entropy_L.cpu(),
            self.experts_L,
            self.tokens,
        )

    @classmethod
    def total(cls, parts: "Iterable[Routing | None]") -> "Routing | None":
        """Sum up the microbatches of a step; None where there are none."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        return cls(
            torch.stack([p.choices_LE for p in known]).sum(dim=0),
            torch.stack([p.prob_LE for p in known]).sum(dim=0),
            torch.stack([p.entropy_L for p in known]).sum(dim=0),
            known[0].experts_L,
            sum(p.tokens for p in known),
        )

    def sums(self) -> dict[str, Tensor]:
        """What adds up over the shares of a step, by name; see `of_sums`."""
        return {
            "routing/choices": self.choices_LE,
            "routing/entropy": self.entropy_L,
            "routing/tokens": torch.tensor([self.tokens]),
        }

    def of_sums(self, sums: Mapping[str, Tensor]) -> "Routing":
        """The same layers with the sums of all shares, probabilities aside."""
        return replace(
            self,
            choices_LE=sums["routing/choices"].long(),
            entropy_L=sums["routing/entropy"],
            tokens=int(sums["routing/tokens"]),
        )

    def metrics(self) -> dict[str, float]:
        """Means over layers. moe/load_max: load of the busiest expert, 1 where all have the same;
        moe/idle_frac: experts without a token; moe/entropy: of a token's router, nats."""
        share_LE = self.choices_LE / self.choices_LE.sum(dim=1, keepdim=True).clamp(min=1)
        there_LE = torch.arange(share_LE.shape[1]) < self.experts_L[:, None]
        idle_L = ((self.choices_LE == 0) & there_LE).sum(dim=1) / self.experts_L
        return {
            "moe/load_max": float((share_LE.max(dim=1).values * self.experts_L).mean()),
            "moe/idle_frac": float(idle_L.mean()),
            "moe/entropy": float((self.entropy_L / max(self.tokens, 1)).mean()),
        }


def balancing_loss(own: Routing, choices: Sequence[int], routed: int) -> Tensor:
    """A microbatch's share of the load-balancing loss; the shares of a step add up to it.

    choices: of each expert by all tokens of the step, in all layers. routed: tokens times layers.
    """
    prob_E = own.prob_LE.sum(dim=0)
    load_E = torch.tensor(choices, dtype=prob_E.dtype, device=prob_E.device) / routed
    return len(choices) * (load_E * prob_E).sum() / routed
