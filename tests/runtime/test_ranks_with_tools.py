"""Thoughts that call tools, on one rank and on two: the same run, and the same after a stop."""

from pathlib import Path

import pytest
from conftest import tiny_run
from many_ranks import run_ranks, values
from test_calling import often
from test_ranks import SIZES, same_metrics, same_tensors, same_thoughts

from rntp.config import Config
from rntp.rollout import engine
from rntp.run.log import read_metrics
from rntp.runtime.ranks import open_ranks
from rntp.tools import REGISTRY, Page, register
from rntp.trainer import Trainer

pytestmark = pytest.mark.slow


def train_calling(raw: dict, sets: list[str]) -> None:
    """Train with a policy that calls a lot, by luck."""
    honest, engine.draw = engine.draw, often

    @register("e", version="1", reads_page=True)
    def echo(arguments: str, page: Page) -> str:
        return page.text[-20:]

    try:
        config = Config.parse(raw, sets)
        with open_ranks(config) as ranks:
            Trainer(config, ranks=ranks).fit()
    finally:
        engine.draw = honest
        del REGISTRY["e"]


def test_two_ranks_call_as_one_does_and_go_on_as_one(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["thought"] |= {
        "thought_tokens": 8,
        "tools": {"use": {"e": None}, "result_tokens": 5},
    }
    sets = [*SIZES, "model.dtype=float64"]

    def on(size: int, folder: str, steps: int) -> None:
        more = [*sets, f"run.steps={steps}", f"run.dir={tmp_path / folder}"]
        if size == 1:
            train_calling(raw, more)
        else:
            values(run_ranks(size, tmp_path / f"{folder}.{steps}", train_calling, raw, more))

    on(1, "one", 3)
    on(2, "two", 3)
    on(2, "stopped", 2)
    on(1, "stopped", 3)
    rows = read_metrics(tmp_path / "one")
    assert all(row["tools/calls"] > 0 and row["tokens/given"] > 0 for row in rows)
    for other in ("two", "stopped"):
        same_metrics(tmp_path / "one", tmp_path / other, 1e-9)
        same_thoughts(tmp_path / "one", tmp_path / other, range(1, 4))
        same_tensors(tmp_path / "one", tmp_path / other, 1e-9)
