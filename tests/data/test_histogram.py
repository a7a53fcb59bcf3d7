from pathlib import Path

import numpy as np
import pytest

from rntp.data import histogram
from rntp.errors import ConfigError


def test_lengths_are_counted_by_powers_of_two(tmp_path: Path) -> None:
    found = histogram.bins(np.array([1, 2, 3, 15, 16, 16, 31]))
    assert found == [(1, 1, 1), (2, 3, 2), (4, 7, 0), (8, 15, 1), (16, 31, 3)]
    lines = histogram.as_text(found).split("\n")
    assert [line.count("█") for line in lines] == [13, 27, 0, 13, 40]
    histogram.plot(found, tmp_path / "lengths.svg")
    assert "<svg" in (tmp_path / "lengths.svg").read_text()
    with pytest.raises(ConfigError, match=r"name it \.png or \.svg"):
        histogram.plot(found, tmp_path / "lengths.pdf")
