"""Accuracy by entropy and calibration: by hand, and against an ordinary forward."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.evaluation import evaluate
from rntp.evaluation.next_token import accuracy, calibration
from rntp.evaluation.resampling import resamples
from rntp.model import load_model
from rntp.trainer import Trainer


def first(match: bool, confidence: float = 0.5, brier: float = 0.5) -> dict:
    return {"match": match, "confidence": confidence, "brier": brier}


def at(empty: dict, *think: dict) -> dict:
    return {"first_empty": empty, "thoughts": [{"first": each} for each in think]}


def test_accuracy_by_tiers_of_entropy() -> None:
    positions = [
        at(first(True), first(True), first(False)),
        at(first(False), first(True), first(True)),
        at(first(False), first(False), first(False)),
    ]
    rows = accuracy(positions, np.array([0, 1, 1]), np.array([0.2, 0.7, 1.2]), seed=0)
    assert [(row["entropy_above"], row["num_positions"]) for row in rows] == [
        (0.0, 3), (0.5, 2), (1.0, 1), (1.5, 0),
    ]  # fmt: skip
    assert rows[0]["no_think"] == pytest.approx(1 / 3)
    assert rows[0]["think"] == pytest.approx(0.5)
    assert rows[0]["change"] == pytest.approx(1 / 6)
    assert rows[0]["change_ci95"] == [-0.5, 0.5]  # one document loses half, the other gains half
    assert rows[1]["change"] == 0.5
    assert rows[1]["change_ci95"] == [0.5, 0.5]
    assert "no_think" not in rows[3]


def test_calibration_by_hand() -> None:
    """Without a thought 80 % sure and always wrong; with one 90 % sure and right nine times."""
    positions = [
        at(first(False, 0.8, 1.2), first(n != 3, 0.9, 0.1), first(n != 3, 0.9, 0.1))
        for n in range(10)
    ]
    found = calibration(positions, np.arange(10), seed=0)
    assert (found["num_bins"], found["binning"]) == (15, "equal mass")
    assert found["no_think"]["num_predictions"] == 10
    assert found["think"]["num_predictions"] == 20
    assert found["no_think"]["ece"] == pytest.approx(0.8)
    assert found["no_think"]["brier"] == pytest.approx(1.2)
    assert found["brier_change"] == pytest.approx(-1.1)
    assert found["brier_change_ci95"] == pytest.approx([-1.1, -1.1])
    assert found["ece_change"] == pytest.approx(found["think"]["ece"] - 0.8)


def test_calibration_error_goes_to_zero_with_n_for_a_calibrated_model_only() -> None:
    generator = np.random.Generator(np.random.Philox(key=0))
    confidence = generator.uniform(0.2, 1.0, 9_000)
    right = generator.uniform(size=9_000) < confidence
    wrong = generator.uniform(size=9_000) < confidence - 0.2
    positions = [
        at(first(bool(a), c), first(bool(b), c))
        for a, b, c in zip(right, wrong, confidence, strict=True)
    ]
    found = calibration(positions, np.arange(9_000) % 300, seed=0)
    assert found["no_think"]["ece"] < 0.03
    assert found["think"]["ece"] == pytest.approx(0.2, abs=0.02)
    low, high = found["ece_change_ci95"]
    assert low < 0.2 < high + 0.02
    assert high - low < 0.08


def test_resamples_of_the_error_are_those_of_the_documents() -> None:
    """One document, so that every resample is the sample."""
    positions = [at(first(n % 2 == 0, 0.75), first(n % 3 == 0, 0.6)) for n in range(40)]
    found = calibration(positions, np.zeros(40, dtype=int), seed=0)
    assert found["ece_change_ci95"] == pytest.approx([found["ece_change"]] * 2)
    assert resamples(1, 0).max() == 0


def test_predictions_are_those_of_an_ordinary_forward(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama-untied"], corpus, tmp_path / "run")
    sets = ["model.dtype=float32", "evaluation.thoughts_per_position=2"]
    trainer = Trainer(Config.parse(raw, sets))
    contexts = trainer.corpus.heldout_contexts(2)
    result = evaluate(trainer.model, contexts, trainer.config)
    plain = load_model(str(model_folders["llama-untied"])).hf
    plain.set_attn_implementation("sdpa")
    matches = []
    for context, page in zip(contexts, result["pages"], strict=True):
        with torch.no_grad():
            p_LV = plain(context.token_ids[None]).logits[0].softmax(-1)
        for place in page["positions"]:
            p_V, token = p_LV[place["position"] - 1], context.token_ids[place["position"]]
            wanted = p_V.square().sum() - p_V[token].square() + (1 - p_V[token]).square()
            assert place["first_empty"]["brier"] == pytest.approx(float(wanted), abs=1e-4)
            assert place["first_empty"]["confidence"] == pytest.approx(float(p_V.max()), abs=1e-4)
            assert place["first_empty"]["match"] == bool(p_V.argmax() == token)
            entropy = float(-(p_V * p_V.log()).sum())
            assert place["entropy"] == pytest.approx(entropy, abs=1e-4)
            matches.append(place["first_empty"]["match"])
            for thought in place["thoughts"]:
                # The right token cannot be more likely than the arg-max, and is it if they match.
                p_right = np.exp(thought["logp_think"][0])
                most = thought["first"]["confidence"]
                assert p_right <= most + 1e-5
                assert (abs(p_right - most) < 1e-5) == thought["first"]["match"]
    assert result["accuracy"][0]["no_think"] == np.mean(matches)
    assert result["entropy_of"] == "this model"
    again = evaluate(trainer.model, contexts, trainer.config, reference=result)
    assert again["entropy_of"] == "the reference evaluation"
    assert again["accuracy"] == result["accuracy"]
