"""Measure gains of thoughts all over pages, fit a gate to them, and measure it on others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.pages import score_pages
from rntp.gate.features import features
from rntp.gate.gain_model import GainModel
from rntp.gate.gate import Gate
from rntp.gate.ranking import auc
from rntp.model import LanguageModel
from rntp.model.thought_tree import TokenTree
from rntp.placement.placer import placer
from rntp.rollout import Check, no_check
from rntp.rollout.engine import open_engine
from rntp.types import Context

DECILES = 10


@dataclass(frozen=True)
class Measured:
    """Positions with what is known without thinking and what thinking gained there.

    features_NF: see `rntp.gate.features`. gain_N: mean over the position's thoughts, nats a token.
    document_N: number of the page. tokens: mean length of a thought.
    """

    features_NF: Tensor
    gain_N: Tensor
    document_N: Tensor
    tokens: float


def measure(
    model: LanguageModel,
    contexts: Sequence[Context],
    config: Config,
    *,
    positions: int,
    thoughts: int,
    purpose: str,
    check: Check = no_check,
) -> Measured:
    """Think at random positions of pages. positions: of a page. thoughts: of a position.

    Raises ConfigError where no page has room.
    """
    engine = open_engine(model, config, thoughts=thoughts, purpose=purpose)
    place = placer(config, "random", purpose, count=positions, tokenizer=model.tokenizer)
    rollouts = engine.sample(contexts, place, check)
    if not rollouts:
        raise ConfigError("no page to measure gains on; take more contexts")
    pages = score_pages(model, rollouts, config, check)
    rows, gains, documents, lengths = [], [], [], []
    for number, (rollout, page) in enumerate(zip(rollouts, pages, strict=True)):
        hidden = _hidden(model, rollout.context)
        at = torch.tensor(rollout.positions)
        rows.append(features(hidden[at.to(hidden.device) - 1], rollout.entropy))
        for found in page["positions"]:
            empty = torch.tensor(found["logp_empty"], dtype=torch.float64)
            think = torch.tensor([t["logp_think"] for t in found["thoughts"]]).double()
            gains.append(float((think - empty).mean()))
            documents.append(number)
            lengths += [t["num_tokens"] for t in found["thoughts"]]
    return Measured(
        torch.cat(rows),
        torch.tensor(gains, dtype=torch.float64),
        torch.tensor(documents),
        sum(lengths) / max(len(lengths), 1),
    )


def fit_gate(measured: Measured, horizon: int) -> Gate:
    """Fit a gate to what was measured."""
    model = GainModel.fit(measured.features_NF, measured.gain_N)
    return Gate(model, horizon, max(measured.tokens, 1.0))


def judge_gate(gate: Gate, measured: Measured, price: float = 0.0) -> dict[str, Any]:
    """How good a gate is on positions that it was not fitted to.

    auc: chance that of a position where thinking helps and one where it does not, the gate expects
    more of the first. deciles: expected against measured gain. always, gated, best: nats a position
    and token when every position is thought at, those where the gate expects to gain more than the
    price, and those where it did; thinking nowhere is 0. thought_at: share of positions.
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
        "gated": float(torch.where(pays, gain, 0.0).mean()),
        "best": float(gain.clamp_min(0).mean()),
        "thought_at": float(pays.double().mean()),
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


def _groups(order: Tensor) -> Iterator[Tensor]:
    return (part for part in order.tensor_split(DECILES) if len(part))


@torch.no_grad()
def _hidden(model: LanguageModel, context: Context) -> Tensor:
    """Last hidden state of every token of a page, [L, D]."""
    tree = TokenTree.build([(context.token_ids, -1, 0)])
    return tree.hidden(model)
