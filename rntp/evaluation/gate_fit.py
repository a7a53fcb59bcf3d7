"""Measure gains of thoughts all over pages, fit a gate to them, and measure it on others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.pages import gains, score_pages
from rntp.evaluation.thoughts_cut import cut
from rntp.gate.features import wide
from rntp.gate.gate import Gate, Length, best_length
from rntp.gate.net import GainNet
from rntp.gate.ranking import auc
from rntp.model import LanguageModel
from rntp.model.thought_tree import TokenTree
from rntp.placement.placer import placer
from rntp.rollout import Check, no_check
from rntp.rollout.engine import open_engine
from rntp.rollout.tool_calls import serving
from rntp.types import Context, Rollout

DECILES = 10


@dataclass(frozen=True)
class Measured:
    """Positions with what is known without thinking and what thinking gained there.

    features_NF: see `rntp.gate.features.wide`. gain_N: mean over the position's thoughts, nats a
    token. document_N: number of the page. tokens: mean length of a thought. shorter: gains [N] and
    mean length of the same thoughts when they are closed after so many tokens. next_N: gain of the
    token right behind, nats, or None.
    """

    features_NF: Tensor
    gain_N: Tensor
    document_N: Tensor
    tokens: float
    shorter: Mapping[int, tuple[Tensor, float]] = field(default_factory=dict)
    next_N: Tensor | None = None


def measure(
    model: LanguageModel,
    contexts: Sequence[Context],
    config: Config,
    *,
    positions: int,
    thoughts: int,
    purpose: str,
    lengths: Sequence[int] = (),
    check: Check = no_check,
) -> Measured:
    """Think at random positions of pages. positions: of a page. thoughts: of a position. lengths:
    tokens after which the same thoughts are closed and measured once more.

    Raises ConfigError where no page has room.
    """
    engine = open_engine(model, config, thoughts=thoughts, purpose=purpose)
    place = placer(config, "random", purpose, count=positions, tokenizer=model.tokenizer)
    with serving(engine, model, config):
        rollouts = engine.sample(contexts, place, check)
    if not rollouts:
        raise ConfigError("no page to measure gains on; take more contexts")
    rows = []
    for rollout in rollouts:
        hidden = _hidden(model, rollout.context)
        at = torch.tensor(rollout.positions)
        rows.append(wide(hidden[at.to(hidden.device) - 1], rollout.entropy))
    gain_N, next_N, tokens = _gains(model, rollouts, config, check)
    return Measured(
        torch.cat(rows),
        gain_N,
        torch.tensor([n for n, rollout in enumerate(rollouts) for _ in rollout.positions]),
        tokens,
        {
            most: (gain_N, mean)
            for most in lengths
            for gain_N, _, mean in [_gains(model, [cut(r, most) for r in rollouts], config, check)]
        },
        next_N,
    )


def _gains(
    model: LanguageModel, rollouts: Sequence[Rollout], config: Config, check: Check
) -> tuple[Tensor, Tensor, float]:
    """Gain at each position, mean over its thoughts, nats a token, and of the next token alone,
    float64 [N] each; mean length."""
    mean_gains, nearest, tokens = [], [], []
    for page in score_pages(model, rollouts, config, check):
        for found in page["positions"]:
            gain_GH = gains(found, config)
            mean_gains.append(float(gain_GH.mean()))
            nearest.append(float(gain_GH[:, 0].mean()))
            tokens += [t["num_tokens"] for t in found["thoughts"]]
    mean = sum(tokens) / max(len(tokens), 1)
    return (
        torch.tensor(mean_gains, dtype=torch.float64),
        torch.tensor(nearest, dtype=torch.float64),
        mean,
    )


def fit_gate(measured: Measured, horizon: int) -> Gate:
    """Fit a gate to what was measured. Raises ConfigError for gains of one page."""

    def fit(gain_N: Tensor) -> GainNet:
        return GainNet.fit(measured.features_NF, gain_N, measured.document_N)

    if not (measured.document_N != measured.document_N[0]).any():
        raise ConfigError("gains of one page cannot tell where thinking pays; take more contexts")
    shorter = tuple(
        Length(most, fit(gain_N), max(tokens, 1.0))
        for most, (gain_N, tokens) in sorted(measured.shorter.items())
    )
    nearest = None if measured.next_N is None else fit(measured.next_N)
    return Gate(fit(measured.gain_N), horizon, max(measured.tokens, 1.0), shorter, nearest)


def judge_gate(gate: Gate, measured: Measured, price: float = 0.0) -> dict[str, Any]:
    """How good a gate is on positions that it was not fitted to.

    auc: chance that of a position where thinking helps and one where it does not, the gate expects
    more of the first. deciles: expected against measured gain. always, gated, best: nats a position
    and token when every position is thought at, those where the gate expects to gain more than the
    price, and those where it did; thinking nowhere is 0. always_error: standard error of the first,
    over pages. thought_at: share of positions. tokens: of thoughts, a position. by_length: the same
    of thoughts as long as pays best, where the gate knows several lengths, and the share of
    positions of each length.
    """
    expected, error = gate.model.predict(measured.features_NF)
    gain = measured.gain_N
    pays = expected * gate.horizon > price * gate.thought_tokens
    order = expected.argsort(stable=True)
    return {
        "positions": len(gain),
        "documents": int(measured.document_N.max()) + 1,
        "auc": auc(expected, gain > 0),
        "always": float(gain.mean()),
        "always_error": page_error(measured),
        "gated": float(torch.where(pays, gain, 0.0).mean()),
        "best": float(gain.clamp_min(0).mean()),
        "thought_at": float(pays.double().mean()),
        "tokens": float(pays.double().mean()) * gate.thought_tokens,
        "by_length": _by_length(gate, measured, price),
        "price": price,
        "noise": gate.model.noise,
        "deciles": [
            {
                "positions": len(members),
                "expected": float(expected[members].mean()),
                "error": float(error[members].mean()),
                "measured": float(gain[members].mean()),
            }
            for members in _groups(order)
        ],
    }


def _by_length(gate: Gate, measured: Measured, price: float) -> dict[str, Any] | None:
    """What the gate gains where it also says how long a thought may be; None without lengths."""
    if not gate.shorter:
        return None
    known = [length.most for length in gate.shorter]
    gain_NB = torch.stack([*(measured.shorter[n][0] for n in known), measured.gain_N], dim=1)
    choice = best_length(gate.worth(measured.features_NF), gate.tokens, price)
    nothing = gain_NB.new_zeros(len(gain_NB), 1)
    gain = torch.cat([nothing, gain_NB], dim=1).gather(1, choice[:, None])
    spent = torch.cat([nothing[0], gate.tokens])[choice]
    return {
        "gated": float(gain.mean()),
        "tokens": float(spent.mean()),
        "share": {
            str(n): float((choice == b).double().mean()) for b, n in enumerate([*known, "full"], 1)
        },
    }


def page_error(measured: Measured) -> float:
    """Standard error of the mean gain, nats a token, with pages as what is drawn."""
    number = measured.document_N.unique(return_inverse=True)[1]
    off = measured.gain_N - measured.gain_N.mean()
    sums = off.new_zeros(int(number.max()) + 1).index_add_(0, number, off)
    return float(sums.square().sum().sqrt() / len(off))


def _groups(order: Tensor) -> Iterator[Tensor]:
    return (part for part in order.tensor_split(DECILES) if len(part))


@torch.no_grad()
def _hidden(model: LanguageModel, context: Context) -> Tensor:
    """Last hidden state of every token of a page, [L, D]."""
    tree = TokenTree.build([(context.token_ids, -1, 0)])
    return tree.hidden(model)
