"""The first token of a continuation: is the arg-max right, and does the model know when it is?

Accuracy by tiers of entropy is that of 2506.08007 (> 0.5, > 1.0, > 1.5 nats, each within the one
before), so that its numbers can be set beside these.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rntp.evaluation.resampling import bounds, interval_of_some, resamples
from rntp.model import LanguageModel
from rntp.model.mixing import mixed_probabilities
from rntp.model.thought_tree import ThoughtTree
from rntp.objective.continued import thought_log_odds

TIERS = (0.0, 0.5, 1.0, 1.5)
NUM_BINS = 15
_CHUNK_ROWS = 256

Prediction = dict[str, Any]


@torch.no_grad()
def predictions(
    model: LanguageModel, hidden: Tensor, tree: ThoughtTree
) -> tuple[list[Prediction], list[list[Prediction]]]:
    """Predict the token at each position, without and with each thought: [P] and [P][G].

    hidden: last hidden states of the tree, [N, H]. match: the token is the arg-max. confidence:
    probability of the arg-max. brier: Σ_v (p_v − 1[v = token])², in [0, 2]. A model that mixes is
    asked for its mixtures.
    """
    empty_P, think_PG = tree.no_think_rows_PH[:, 0], tree.think_rows_PGH[:, :, 0]
    positions, group = think_PG.shape
    rows = torch.cat([empty_P, think_PG.flatten()]).to(hidden.device)
    target_P = tree.continuation_PH[:, 0]
    targets = torch.cat([target_P, target_P.repeat_interleave(group)]).to(hidden.device)
    mixed_with = torch.cat([empty_P, empty_P.repeat_interleave(group)]).to(hidden.device)
    odds = torch.full((len(rows),), torch.inf, device=hidden.device)  # of this row, and no other
    if model.mixing is not None and group:
        odds[positions:] = thought_log_odds(model.mixing, tree, hidden)[:, :, 0].flatten()
    found: list[Prediction] = []
    # In pieces: every row has as many logits as the vocabulary.
    for some in torch.arange(len(rows), device=hidden.device).split(_CHUNK_ROWS):
        logits = model.logits(hidden.index_select(0, rows[some]))
        if model.mixing is None:
            found += _predict(logits.softmax(dim=-1), targets[some])
            continue
        others = model.logits(hidden.index_select(0, mixed_with[some]))
        found += _predict(mixed_probabilities(others, logits, odds[some]), targets[some])
    think = found[positions:]
    return found[:positions], [think[p * group :][:group] for p in range(positions)]


def accuracy(
    positions: Sequence[dict[str, Any]],
    documents_P: np.ndarray,
    entropy_P: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    """One row a tier: share of right arg-maxes without a thought, with one (mean over thoughts),
    and the difference with its interval. entropy_P: nats, of the prediction without a thought.
    """
    no_think, think = accuracies(positions)
    rows = []
    for tier in TIERS:
        members = entropy_P > tier if tier else np.ones(len(positions), dtype=bool)
        row: dict[str, Any] = {"entropy_above": tier, "num_positions": int(members.sum())}
        if members.any():
            change = (think - no_think)[members]
            row |= {
                "no_think": float(no_think[members].mean()),
                "think": float(think[members].mean()),
                "change": float(change.mean()),
                "change_ci95": interval_of_some(change, documents_P[members], seed),
            }
        rows.append(row)
    return rows


def accuracies(positions: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Score each position, in [0, 1]: without a thought, and with one (mean over thoughts); [P]."""
    no_think = [at["first_empty"]["match"] for at in positions]
    think = [np.mean([t["first"]["match"] for t in at["thoughts"]]) for at in positions]
    return np.array(no_think, dtype=float), np.array(think)


def calibration(
    positions: Sequence[dict[str, Any]], documents_P: np.ndarray, seed: int
) -> dict[str, Any]:
    """Expected calibration error (15 bins of equal mass by confidence) and multi-class Brier score.

    Every thought is a prediction of its own. Bins of few predictions make the error look larger
    than it is (n is given), alike with and without a thought only where n is; in a resample the
    bins stay those of the whole sample.
    """
    empty = [at["first_empty"] for at in positions]
    think = [t["first"] for at in positions for t in at["thoughts"]]
    group = [len(at["thoughts"]) for at in positions]
    of_empty = _Errors(empty, documents_P)
    of_think = _Errors(think, np.repeat(documents_P, group))
    picks = resamples(of_empty.num_docs, seed)
    brier_P = np.array([np.mean([t["first"]["brier"] for t in at["thoughts"]]) for at in positions])
    brier_P -= np.array([at["first_empty"]["brier"] for at in positions])
    sides = {"no_think": (of_empty, empty), "think": (of_think, think)}
    return {
        "num_bins": NUM_BINS,
        "binning": "equal mass",
        **{
            name: {
                "num_predictions": len(each),
                "ece": errors.value,
                "brier": float(np.mean([p["brier"] for p in each])),
            }
            for name, (errors, each) in sides.items()
        },
        "ece_change": of_think.value - of_empty.value,
        "ece_change_ci95": bounds(of_think.resampled(picks) - of_empty.resampled(picks)),
        "brier_change": float(brier_P.mean()),
        "brier_change_ci95": interval_of_some(brier_P, documents_P, seed),
    }


class _Errors:
    """Expected calibration error of predictions, of all and of resamples of their documents."""

    def __init__(self, found: Sequence[Prediction], documents: np.ndarray) -> None:
        confidence = np.array([p["confidence"] for p in found])
        match = np.array([p["match"] for p in found], dtype=float)
        bins = np.empty(len(found), dtype=int)
        order = np.argsort(confidence, kind="stable")
        for number, members in enumerate(np.array_split(order, NUM_BINS)):
            bins[members] = number
        _, rows = np.unique(documents, return_inverse=True)
        self.num_docs = int(rows.max()) + 1
        # Σ (confidence − match) of each document and bin, [D, 15]; |Σ over D| / n is the error.
        self._gaps = np.zeros((self.num_docs, NUM_BINS))
        np.add.at(self._gaps, (rows, bins), confidence - match)
        self._counts = np.bincount(rows)
        self.value = float(np.abs(self._gaps.sum(axis=0)).sum() / len(found))

    def resampled(self, picks: np.ndarray) -> np.ndarray:
        """picks: int64 [R, D] -> float64 [R]."""
        times = np.zeros((len(picks), self.num_docs))
        np.add.at(times, (np.arange(len(picks))[:, None], picks), 1.0)
        return np.abs(times @ self._gaps).sum(axis=1) / (times @ self._counts)


def _predict(p_NV: Tensor, targets: Tensor) -> list[Prediction]:
    confidence, top1 = p_NV.max(dim=-1)
    brier = p_NV.square().sum(dim=-1) - 2 * p_NV.gather(1, targets[:, None])[:, 0] + 1
    columns = ((top1 == targets).tolist(), confidence.tolist(), brier.tolist())
    return [
        {"match": match, "confidence": most, "brier": score}
        for match, most, score in zip(*columns, strict=True)
    ]
