"""A gate that is fitted to pages the model was not trained on, and the word where pages differ."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.evaluation import gate_of_run
from rntp.evaluation.gate_fit import Measured, page_error
from rntp.evaluation.place_tables import gate_table
from rntp.run.export import export
from rntp.trainer import Trainer
from rntp.types import Context


def test_no_page_is_both_fitted_to_and_measured(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 1
    raw["model"]["dtype"] = "float32"
    raw["evaluation"] = {"docs": 1}
    trainer = Trainer(Config.parse(raw))
    trainer.fit()
    held = [c.document_id for c in trainer.corpus.heldout_contexts(99)]
    export(tmp_path / "run", tmp_path / "model", say=lambda text: None)
    used: dict[str, list[str]] = {}

    def watched(model: Any, pages: list[Context], *rest: Any) -> Measured:
        used[rest[4]] = [page.document_id for page in pages]
        return measured(model, pages, *rest)

    measured = gate_of_run._measured
    monkeypatch.setattr(gate_of_run, "_measured", watched)

    def learn(contexts: int, *, unseen: bool) -> dict[str, Any]:
        return gate_of_run.learn_gate(
            tmp_path / "run",
            tmp_path / "model",
            contexts=contexts,
            positions=10,
            thoughts=1,
            price=0.0,
            step=None,
            say=lambda text: None,
            unseen=unseen,
        )

    half = (len(held) + 1) // 2
    found = learn(99, unseen=True)
    assert used == {"gate, fit": held[half:], "gate, held out": held[:half]}
    assert found["unseen"]
    # Where there are twice as many, as many as were asked for; measured are the first, as in evals.
    learn(2, unseen=True)
    assert used == {"gate, fit": held[2:4], "gate, held out": held[:2]}
    found = learn(3, unseen=False)
    assert used["gate, held out"] == held[:3]
    assert not {*used["gate, fit"]} & {*held}
    assert not found["unseen"]


def of(gains: list[float], pages: list[int]) -> Measured:
    return Measured(
        torch.zeros(len(gains), 1), torch.tensor(gains).double(), torch.tensor(pages), tokens=3.0
    )


def test_an_error_over_pages_by_hand() -> None:
    # Deviations from 0.5: pages sum to 1, −1 and 0; √2 / 6.
    one = of([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [0, 0, 1, 1, 7, 7])
    assert page_error(one) == pytest.approx(2**0.5 / 6)
    # As many positions of pages of their own are surer.
    assert page_error(of([1.0, 1.0, 0, 0, 1.0, 0], [0, 1, 2, 3, 4, 5])) < page_error(one)


@pytest.mark.parametrize(
    ("fitted", "unseen", "said"), [(0.02, False, True), (0.05, False, False), (0.02, True, True)]
)
def test_the_table_says_where_pages_gain_other_amounts(
    fitted: float, unseen: bool, said: bool
) -> None:
    found: dict[str, Any] = {
        "fitted_to": 720,
        "fitted_gain": fitted,
        "fitted_error": 0.008,
        "unseen": unseen,
        "positions": 720,
        "documents": 120,
        "auc": 0.5,
        "deciles": [],
        "always": 0.064,
        "always_error": 0.009,
        "gated": 0.064,
        "thought_at": 1.0,
        "price": 0.0,
        "best": 0.09,
        "by_length": None,
    }
    text = gate_table(found)
    assert ("it expects the wrong amounts" in text) == said
    assert ("--unseen" in text) == (said and not unseen)
