"""What ranks send each other in a step, on real ranks and made-up steps."""

import json
from pathlib import Path

import pytest

from rntp import cli
from rntp.errors import ConfigError


@pytest.mark.slow
def test_a_step_sends_a_twentieth_of_its_objects_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--ranks", "1", "2", "4", "--thoughts-per-step", "64", "256", "--repeats", "1"]
    cli.main(["bench", "exchange", *sizes, "--json", "--out", str(tmp_path)])
    [result] = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "exchange.json").read_text())
    points = {(p["ranks"], p["thoughts"]): p for p in result["points"]}
    assert set(points) == {(n, t) for n in (1, 2, 4) for t in (64, 256)}
    for (ranks, thoughts), point in points.items():
        old, new = point["objects"], point["packed"]
        assert old["seconds"] > 0
        assert new["seconds"] > 0
        if ranks == 1:
            assert old["bytes"] == new["bytes"] == 0
            continue
        # Rewards, driving rewards and gains in float64, and eight numbers a position.
        rows = thoughts * (ranks - 1) / ranks * (3 * 8 + 8)
        assert rows < new["bytes"] < rows + 4000
        assert new["bytes"] < new["bytes_rank_0"] < 0.1 * old["bytes"]
    assert points[4, 256]["packed"]["bytes"] < 0.05 * points[4, 256]["objects"]["bytes"]
    assert "4      256 " in (tmp_path / "exchange.txt").read_text()


def test_numbers_that_cannot_be_are_refused() -> None:
    from rntp.bench.exchange.command import exchange
    from rntp.cli import build_parser

    arguments = build_parser().parse_args(["bench", "exchange", "--ranks", "0"])
    with pytest.raises(ConfigError, match="must be 1 or more"):
        exchange(arguments)
