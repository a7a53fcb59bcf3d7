"""Columns that say when a level was reached, and what it had cost by then."""

from types import SimpleNamespace

import pytest

from rntp.ablate.experiment import Column
from rntp.ablate.results import Record, value_of


def record(*gains: float | None) -> Record:
    """Evaluations every ten steps of a run that draws 5 tokens a step, none in its third."""
    steps = 10 * (len(gains) - 1)
    return Record(
        run=SimpleNamespace(config=SimpleNamespace(run=SimpleNamespace(steps=steps))),  # type: ignore[arg-type]
        evaluations={
            10 * n: {"gain/mean": gain} for n, gain in enumerate(gains) if gain is not None
        },
        metrics=[
            {"step": n, **({} if n == 3 else {"tokens/thought": 5})} for n in range(1, steps + 1)
        ],
        manifest={},
    )


def test_the_first_evaluation_of_a_level_counts() -> None:
    step = Column(reach="gain/mean", level=0.8)
    cost = Column(reach="gain/mean", level=0.8, count="tokens/thought")
    there_and_back = record(0.0, 0.5, 0.8, 0.3)
    assert value_of(step, there_and_back) == 20
    assert value_of(cost, there_and_back) == 5 * 19
    assert value_of(cost, record(0.9, 0.9)) == 0  # it was there before training
    assert value_of(step, record(0.1, None, 0.2, 0.85)) == 30
    # The negative case: what never comes there has no number, and not that of its end.
    assert value_of(step, record(0.0, 0.79, 0.799)) is None
    assert value_of(Column(reach="other", level=0.8), there_and_back) is None


def test_what_it_means_and_what_belongs_together() -> None:
    cost = Column(reach="gain/mean", level=0.8, count="tokens/thought")
    assert cost.meaning == (
        "sum of `tokens/thought` up to the first evaluation with `gain/mean` of 0.8"
    )
    for wrong in (
        {"reach": "gain/mean"},
        {"eval": "gain/mean", "level": 0.8},
        {"eval": "gain/mean", "count": "tokens/thought"},
        {"reach": "gain/mean", "level": 0.8, "last": 3},
    ):
        with pytest.raises(ValueError, match=r"belongs? to"):
            Column(**wrong)  # type: ignore[arg-type]
