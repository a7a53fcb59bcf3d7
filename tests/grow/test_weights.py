from pathlib import Path

import pytest

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.grow.weights import corpora, shares, teaches, tilts

PLANTED = Path(__file__).parents[2] / "experiments" / "planted" / "config.yaml"


def test_shares_are_tokens_tilted_by_what_a_token_teaches_within_bounds() -> None:
    assert shares([0.2, 0.2], [300, 100], 4.0) == pytest.approx([0.75, 0.25])
    # The mean over tokens is 0.1: tilts are 0.5 and 2.5.
    assert tilts([0.05, 0.25], [300, 100], 4.0) == pytest.approx([0.5, 2.5])
    assert shares([0.05, 0.25], [300, 100], 4.0) == pytest.approx([150 / 400, 250 / 400])
    assert tilts([0.0, 1.0], [900, 100], 4.0) == [0.25, 4.0]
    assert tilts([0.0, 0.0], [900, 100], 4.0) == [1.0, 1.0]  # nothing is learnt: as they are
    assert sum(shares([0.0, 1.0, 0.3], [9, 1, 5], 2.0)) == pytest.approx(1.0)


def test_what_a_corpus_teaches() -> None:
    def worth(
        gain: float, spread: float, change: float = 0.0, elsewhere: float = -0.1
    ) -> dict[str, float]:
        return {"gain": gain, "spread": spread, "change": change, "elsewhere": elsewhere}

    assert teaches([]) == 0.0
    assert teaches([worth(-0.2, 1.1), worth(0.1, 1.1)]) == 0.0  # noise
    assert teaches([worth(0.2, 0.1), worth(0.4, 0.3)]) == pytest.approx(0.2)
    assert teaches([worth(0.1, 0.3, 0.05)]) == pytest.approx(0.15)
    assert teaches([worth(0.1, 0.3, -0.05)]) == pytest.approx(0.1)
    assert teaches([worth(0.1, 0.3, 0.5)]) == pytest.approx(0.2)  # no more than the gain
    assert teaches([worth(0.3, 0.5, 0.0, 0.25)]) == pytest.approx(0.05)
    assert teaches([worth(0.3, 0.5, 0.4, 0.35)]) == 0.0  # whatever is said helps as much


def test_corpora_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PLANTED.parents[2])

    def of(source: str) -> list[Path]:
        return corpora(Config.load(PLANTED, [f"data.source={source}"]))

    assert of("build/web") == [Path("build/web")]
    assert of("{build/web: 3, build/books: 1}") == [Path("build/web"), Path("build/books")]
    with pytest.raises(ConfigError, match="rntp data grow"):
        of("crawl/a.warc.gz")
