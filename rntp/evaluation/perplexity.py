"""Plain next-token loss on whole held-out contexts: the drift guard."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rntp.config import Config
from rntp.model import LanguageModel
from rntp.model.microbatches import microbatches
from rntp.model.reading import LossReads
from rntp.objective.forward import build_tree, forward
from rntp.rollout import Check
from rntp.rollout.engine import without_thoughts
from rntp.runtime.ranks import SINGLE_RANK, Ranks
from rntp.types import Context


def read_plainly(
    model: LanguageModel,
    contexts: Sequence[Context],
    config: Config,
    check: Check,
    before: dict[str, Any] | None,
    ranks: Ranks = SINGLE_RANK,
) -> dict[str, Any]:
    """Plain next-token loss on every token of the contexts, nats: what training may have spoilt.

    before: the same of the reference evaluation; then with the change of each class since.
    """

    def read() -> list[tuple[str, float]]:
        return list(_losses(model, ranks.share(contexts), config, check))

    found = ranks.join(read, "evaluate")
    groups: dict[str, list[float]] = {}
    for name, value in found:
        # A class, and its kinds: "thinkable" and "thinkable, 2 hops".
        for key in {name, name.partition(",")[0]} - {""}:
            groups.setdefault(key, []).append(value)
    classes = {key: float(np.mean(groups[key])) for key in sorted(groups)}
    result: dict[str, Any] = {
        "num_tokens": len(found),
        "nll": float(np.mean([value for _, value in found])),
        "classes": classes,
    }
    if before:
        result["change"] = result["nll"] - before["nll"]
        result["class_changes"] = {key: classes[key] - before["classes"][key] for key in classes}
    return result


def _losses(
    model: LanguageModel, contexts: Sequence[Context], config: Config, check: Check
) -> Iterator[tuple[str, float]]:
    """Class and loss (nats) of every token of each context that is predicted."""
    plain = [without_thoughts(context) for context in contexts]
    most = config.parallel.tokens_per_microbatch
    for piece in microbatches(plain, tokens=most, horizon=1, shares=model.shares):
        check()
        scores = forward(
            model, build_tree(model, piece, 1, LossReads(context=True)), temperature=1.0
        )
        assert scores.context_logp is not None
        nll = iter((-scores.context_logp).tolist())
        for rollout in piece:
            labels = rollout.context.labels
            for index in rollout.context.predicted.tolist():
                yield labels.names.get(labels.classes[index], "") if labels else "", next(nll)
