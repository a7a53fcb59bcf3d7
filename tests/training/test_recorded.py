"""Which thoughts a run writes down."""

import pytest
import torch

from rntp.config import Config
from rntp.training.estimate import record_bytes
from rntp.training.recorded import recorded
from rntp.types import Page


def config(*overrides: str) -> Config:
    raw = {
        "run": {"name": "r", "steps": 100, "dir": "none"},
        "model": {"spec": "none"},
        "data": {"source": "none", "docs_per_step": 50, "context_tokens": 256},
        "placement": {"positions_per_doc": 4},
        "thought": {"thoughts_per_position": 8, "thought_tokens": 32},
        "reward": {"horizon": 16},
    }
    return Config.parse(raw, list(overrides))


def page(ordinal: int) -> Page:
    zeros = torch.zeros(4)
    before = torch.zeros(4, 2, dtype=torch.int64)
    return Page(ordinal, 0, None, 256, (10, 60, 110, 160), before, zeros, zeros)


def groups(settings: Config, first: int) -> set[tuple[int, int]]:
    pages = [page(first + n) for n in range(50)]
    kept = recorded(settings, pages)
    return {(p.ordinal, at) for p in pages for at in p.positions if kept(p.ordinal, at)}


@pytest.mark.parametrize(("most", "number"), [(96, 12), (95, 11), (8, 1), (3, 1), (1600, 200)])
def test_whole_groups_and_no_more_than_asked(most: int, number: int) -> None:
    assert len(groups(config(f"log.rollouts_per_step={most}"), 0)) == number


def test_all_without_a_rate_and_others_with_another_seed() -> None:
    assert len(groups(config(), 0)) == 200
    rate = "log.rollouts_per_step=96"
    assert groups(config(rate), 0) == groups(config(rate), 0)
    assert groups(config(rate), 0) != groups(config(rate, "run.seed=7"), 0)


def test_every_place_is_as_likely() -> None:
    """12 of 200 groups a step: over 100 steps each of the four positions 300 times."""
    found = [at for n in range(100) for _, at in groups(config("log.rollouts_per_step=96"), 50 * n)]
    for at in (10, 60, 110, 160):
        assert abs(found.count(at) - 300) < 4 * 15  # standard deviations of 15


def test_the_disk_is_asked_for_what_is_kept() -> None:
    row = 700 + 14 * 32 + 40 * 16 + 60 * len(config().reward.names)
    steps = 80 + 20 / 4  # the newest as they are, the others packed
    assert record_bytes(config()) == 1600 * row * steps
    assert record_bytes(config("log.rollouts_per_step=96")) == 96 * row * steps
    assert record_bytes(config("log.rollouts_per_step=3")) == 8 * row * steps
