"""Intervals by resampling documents, the unit that is drawn independently."""

import numpy as np

RESAMPLES = 2000


def interval(values: np.ndarray, documents: np.ndarray, seed: int) -> list[float]:
    """95 % interval of the mean over tokens, by resampling documents (percentile bootstrap)."""
    sums = np.bincount(documents, weights=values)
    sizes = np.bincount(documents)
    generator = np.random.Generator(np.random.Philox(key=seed))
    picks = generator.integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    return [float(x) for x in np.percentile(means, [2.5, 97.5])]
