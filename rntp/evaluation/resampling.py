"""Intervals by resampling documents, the unit that is drawn independently."""

import numpy as np

RESAMPLES = 2000


def interval(
    values: np.ndarray, documents: np.ndarray, seed: int, sizes: np.ndarray | None = None
) -> list[float]:
    """95 % interval of the mean over tokens, by resampling documents (percentile bootstrap).

    sizes: what each value is divided by when it is a sum itself, such as the bytes of a span; the
    interval is then of Σ values / Σ sizes.
    """
    sums, counts = np.bincount(documents, weights=values), np.bincount(documents, weights=sizes)
    picks = resamples(len(sums), seed)
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    return bounds(means)


def interval_of_some(
    values: np.ndarray, documents: np.ndarray, seed: int, sizes: np.ndarray | None = None
) -> list[float]:
    """The same where not every document number has a value: those that have are resampled."""
    _, renumbered = np.unique(documents, return_inverse=True)
    return interval(values, renumbered, seed, sizes)


def resamples(num_docs: int, seed: int) -> np.ndarray:
    """int64 [2000, num_docs]: the documents of each resample, with repeats."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return generator.integers(num_docs, size=(RESAMPLES, num_docs))


def bounds(estimates: np.ndarray) -> list[float]:
    """The middle 95 % of the resampled estimates."""
    return [float(x) for x in np.percentile(estimates, [2.5, 97.5])]
