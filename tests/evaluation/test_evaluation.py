"""The four cells: paired, the same positions each time, with intervals that can be checked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.evaluation import compare, evaluate
from rntp.evaluation.resampling import interval
from rntp.model import load_model
from rntp.trainer import Trainer


@pytest.fixture(scope="module")
def trainer(
    model_folders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trainer:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path_factory.mktemp("run") / "run")
    return Trainer(Config.parse(raw, ["model.dtype=float32", "evaluation.thoughts_per_position=2"]))


def test_means_deciles_and_pages_agree(trainer: Trainer) -> None:
    contexts = trainer.corpus.heldout_contexts(3)
    result = evaluate(trainer.model, contexts, trainer.config)
    empty = [x for p in result["pages"] for at in p["positions"] for x in at["logp_empty"]]
    think = [
        x for p in result["pages"] for at in p["positions"] for t in at["thoughts"]
        for x in t["logp_think"]
    ]  # fmt: skip
    assert result["num_tokens"] == len(empty) == 3 * 2 * 4
    assert len(think) == 2 * len(empty)
    assert result["nll/no_think"] == pytest.approx(-np.mean(empty))
    assert result["nll/think"] == pytest.approx(-np.mean(think))
    assert result["gain/mean"] == pytest.approx(np.mean(think) - np.mean(empty))
    low, high = result["gain/ci95"]
    assert low < result["gain/mean"] < high
    assert sum(row["num_tokens"] for row in result["deciles"]) == len(empty)
    losses = [row["nll/no_think"] for row in result["deciles"]]
    assert losses == sorted(losses)
    weighted = sum(row["gain"] * row["num_tokens"] for row in result["deciles"]) / len(empty)
    assert weighted == pytest.approx(result["gain/mean"])


def test_no_think_loss_is_the_models_own(trainer: Trainer, model_folders: dict[str, Path]) -> None:
    """The table's first cell against an ordinary forward of the ordinary model."""
    contexts = trainer.corpus.heldout_contexts(2)
    result = evaluate(trainer.model, contexts, trainer.config)
    plain = load_model(str(model_folders["llama"])).hf
    plain.set_attn_implementation("sdpa")
    for context, page in zip(contexts, result["pages"], strict=True):
        with torch.no_grad():
            logp = torch.log_softmax(plain(context.token_ids[None]).logits[0], -1)
        for at in page["positions"]:
            rows = range(at["position"], at["position"] + 4)
            expected = [float(logp[i - 1, context.token_ids[i]]) for i in rows]
            assert at["logp_empty"] == pytest.approx(expected, abs=1e-4)


def test_evaluations_are_paired_and_repeatable(trainer: Trainer) -> None:
    contexts = trainer.corpus.heldout_contexts(3)
    first = evaluate(trainer.model, contexts, trainer.config)
    assert evaluate(trainer.model, contexts, trainer.config) == first
    table = compare(first, first)
    assert table["nll/think"]["change"] == 0
    assert table["nll/think"]["ci95"] == [0, 0]
    assert table["gain_ci95"]["before"] == first["gain/ci95"] or trainer.config.run.seed != 0
    with pytest.raises(ValueError, match="different continuations"):
        compare(first, evaluate(trainer.model, contexts[:2], trainer.config))
    with pytest.raises(ValueError, match="other continuations"):
        evaluate(trainer.model, contexts[:2], trainer.config, reference=first)


def test_compare_by_hand() -> None:
    def result(empty: list[float], think: list[float]) -> dict:
        pages = [
            {"positions": [{"logp_empty": [e], "thoughts": [{"logp_think": [t]}]}]}
            for e, t in zip(empty, think, strict=True)
        ]
        return {"pages": pages}

    table = compare(result([-2, -4], [-3, -4]), result([-2, -3], [-1, -2]))
    assert table["nll/no_think"]["before"] == 3
    assert table["nll/no_think"]["change"] == -0.5
    assert table["nll/think"]["change"] == -2
    assert table["gain/mean"]["before"] == -0.5
    assert table["gain/mean"]["after"] == 1
    assert table["nll/think"]["ci95"] == [-2, -2]  # both documents gained the same
    assert table["nll/no_think"]["ci95"] == [-1, 0]
    assert (table["num_docs"], table["num_tokens"]) == (2, 2)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Documents of unequal size with a shared effect: resampling tokens would be far too sure."""
    generator = np.random.Generator(np.random.Philox(key=1))
    covered = 0
    for trial in range(200):
        sizes = generator.integers(1, 9, size=40)
        documents = np.repeat(np.arange(40), sizes)
        effect = generator.normal(0, 1, 40)[documents]
        values = effect + generator.normal(0, 0.2, len(documents))
        low, high = interval(values, documents, trial)
        covered += low <= 0 <= high
    assert 175 <= covered <= 199


def test_progress_counts_every_page_and_every_control(trainer: Trainer) -> None:
    said: list[tuple[str, int, int]] = []
    evaluation = trainer.config.evaluation.model_copy(update={"controls": ("shuffled", "empty")})
    config = trainer.config.model_copy(update={"evaluation": evaluation})
    contexts = trainer.corpus.heldout_contexts(3)
    evaluate(trainer.model, contexts, config, progress=lambda *part: said.append(part))
    sampled = [part for part in said if part[0] == "evaluate"]
    scored = [done for name, done, total in said if name == "score" and total == 9]
    assert (sampled[0], sampled[-1]) == (("evaluate", 0, 3), ("evaluate", 3, 3))
    assert scored[-1] == 9
    assert scored == sorted(scored)
    assert len(sampled) + len(scored) == len(said)
