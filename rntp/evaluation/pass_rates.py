"""Tasks of an evaluation: how many are solved, by one attempt and by the best of k."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from rntp.evaluation.resampling import interval


def pass_at(attempts: int, right: int, k: int) -> float:
    """Estimate the chance that one of k attempts is right, without bias (2107.03374, eq. 1).

    1 − C(n − c, k) / C(n, k), of n attempts of which c were right; k <= n.
    """
    return 1 - comb(attempts - right, k) / comb(attempts, k)


def powers(most: int) -> list[int]:
    """1, 2, 4 … up to `most`, and `most`."""
    return sorted({most, *(1 << n for n in range(most.bit_length()) if 1 << n <= most)})


def task_table(pages: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Pass rates of the tasks among the pages, {"tasks": …}; {} where no answer was written.

    pass@k for k = 1, 2, 4 … with intervals over tasks (bootstrap; the tasks are what is drawn
    independently). closed: share of the thoughts that the model closed; by_source: pass@1 of each.
    """
    found = [
        (page["task"]["source"], page["positions"][0]["thoughts"])
        for page in pages
        if "task" in page and "score" in page["positions"][0]["thoughts"][0]
    ]
    if not found:
        return {}
    right = np.array([sum(t["score"] >= 1 for t in attempts) for _, attempts in found])
    n = len(found[0][1])
    numbers = np.arange(len(found))
    every = [t for _, attempts in found for t in attempts]
    rows = []
    for k in powers(n):
        values = np.array([pass_at(n, int(c), k) for c in right])
        rows.append({"k": k, "pass": float(values.mean()), "ci95": interval(values, numbers, seed)})
    sources = sorted({source for source, _ in found})
    share = right / n
    return {
        "tasks": {
            "num_tasks": len(found),
            "attempts": n,
            "pass_at": rows,
            "score": float(np.mean([t["score"] for t in every])),
            "closed": float(np.mean([t["closed"] for t in every])),
            "thought_tokens": float(np.mean([t["num_tokens"] for t in every])),
            "answer_tokens": float(np.mean([t["answer_tokens"] for t in every])),
            "by_source": {
                source: float(
                    np.mean([p for p, (s, _) in zip(share, found, strict=True) if s == source])
                )
                for source in sources
            },
        }
    }


def solved(pages: Sequence[dict[str, Any]]) -> np.ndarray:
    """Share of right attempts of each task that was answered, [tasks]."""
    groups = [page["positions"][0]["thoughts"] for page in pages if "task" in page]
    return np.array([np.mean([t["score"] >= 1 for t in g]) for g in groups if "score" in g[0]])


def beside(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any]:
    """pass@1 before and after training with the change's interval, paired over tasks; {} without
    tasks."""
    old, new = solved(before), solved(after)
    if not len(old) or old.shape != new.shape:
        return {}
    return {
        "tasks/pass_at_1": {
            "before": float(old.mean()),
            "after": float(new.mean()),
            "change": float((new - old).mean()),
            "ci95": interval(new - old, np.arange(len(old)), seed),
        }
    }
