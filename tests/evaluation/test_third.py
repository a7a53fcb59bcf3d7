"""Deciles under a third model, and what a run and the report make of the new tables."""

import json
from pathlib import Path

import pytest
from conftest import tiny_run, tiny_tokenizer
from tokenizers import pre_tokenizers

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation import compare, evaluate, third
from rntp.evaluation.during import evaluation_path
from rntp.evaluation.measure import third_losses
from rntp.placement.placer import placer
from rntp.report.page import render
from rntp.report.runs import load_runs
from rntp.rollout import no_check
from rntp.rollout.engine import open_engine
from rntp.show import evaluation_table
from rntp.trainer import Trainer

FLOAT = "model.dtype=float32"


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    return tiny_run(model_folders["llama"], corpus, tmp_path / "run")


def test_deciles_go_by_the_third_models_own_loss(
    raw: dict, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses are those that it has as the model of a run at the same positions."""
    other = str(model_folders["qwen3"])
    trainer = Trainer(Config.parse(raw, [FLOAT, f"evaluation.decile_model={other}"]))
    contexts = trainer.corpus.heldout_contexts(3)
    result = evaluate(trainer.model, contexts, trainer.config)
    assert result["deciles_of"] == other
    found = [at["third"]["nll"] for page in result["pages"] for at in page["positions"]]

    as_model = Trainer(Config.parse({**raw, "model": {"spec": other, "device": "cpu"}}, [FLOAT]))
    theirs = evaluate(as_model.model, contexts, as_model.config)
    wanted = [
        [-x for x in at["logp_empty"]] for page in theirs["pages"] for at in page["positions"]
    ]
    for mine, his in zip(found, wanted, strict=True):
        assert mine == pytest.approx(his, abs=1e-4)

    # The bins are another order of the same tokens.
    plain = Trainer(Config.parse(raw, [FLOAT]))
    own = evaluate(plain.model, contexts, plain.config)
    assert own["deciles_of"] == "this model"
    assert own["gain/mean"] == result["gain/mean"]
    assert [r["num_tokens"] for r in own["deciles"]] == [r["num_tokens"] for r in result["deciles"]]
    assert [r["gain"] for r in own["deciles"]] != [r["gain"] for r in result["deciles"]]
    for row in result["deciles"]:
        low, high = row["gain_ci95"]
        assert low <= row["gain"] <= high

    # A later evaluation takes the losses over and does not load it again.
    monkeypatch.setattr("rntp.evaluation.measure.third_losses", None)
    again = evaluate(trainer.model, contexts, trainer.config, reference=result)
    assert again["deciles"] == result["deciles"]


def test_another_tokenizer_is_refused(raw: dict, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    folder = tmp_path / "third"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = Config.parse(raw, [f"evaluation.decile_model={folder}"])
    with pytest.raises(ConfigError, match=r"another tokenizer .* model of the same tokenizer"):
        Trainer(config)
    third.check_third(Config.parse(raw), tokenizer)  # nothing asked for, nothing compared


def test_thoughts_do_not_matter_to_the_third_model(
    raw: dict, model_folders: dict[str, Path]
) -> None:
    sets = [FLOAT, f"evaluation.decile_model={model_folders['qwen3']}"]
    trainer = Trainer(Config.parse(raw, sets))
    config, contexts = trainer.config, trainer.corpus.heldout_contexts(2)
    found = []
    for thoughts in (1, 3):
        engine = open_engine(trainer.model, config, thoughts=thoughts)
        rollouts = engine.sample(contexts, placer(config, "random", "x"), no_check)
        found.append(third_losses(config, rollouts, trainer.model.device, no_check))
    assert found[0] == found[1]
    assert len(found[0]) == 4
    assert len(found[0][0]) == 4


def test_a_run_measures_prints_and_reports_it_all(raw: dict) -> None:
    sets = ["run.steps=2", "evaluation.thoughts_per_position=2"]
    trainer = Trainer(Config.parse(raw, sets))
    comparison = trainer.fit()
    folder = trainer.config.run.dir
    before, after = (
        json.loads(evaluation_path(trainer.config, n).read_text())
        for n in (0, trainer.config.run.steps)
    )
    assert before["deciles_of"] == "this model"
    assert after["deciles_of"] == after["entropy_of"] == "the reference evaluation"
    assert [row["num_positions"] for row in before["accuracy"]] == [
        row["num_positions"] for row in after["accuracy"]
    ]
    assert comparison is not None
    bits = comparison["bits_per_byte/think"]
    assert bits["before"] == pytest.approx(before["bits_per_byte"]["think"])
    assert bits["change"] == pytest.approx(bits["after"] - bits["before"])
    assert bits["ci95"][0] <= bits["change"] <= bits["ci95"][1]
    assert comparison["accuracy/no_think"]["after"] == after["accuracy"][0]["no_think"]
    assert compare(before, before)["accuracy/think"]["ci95"] == [0, 0]
    told = evaluation_table(after)
    for words in ("bound of 2 thoughts", "bits per byte", "net gain", "ECE, 15", "accuracy, entro"):
        assert words in told
    html = render(load_runs([folder]), compare)
    assert "Other measures, after training" in html
    assert "loss, bound of 2 thoughts" in html

    # A result of before these measures existed is compared by what it has.
    for page in before["pages"]:
        for at in page["positions"]:
            del at["num_bytes"], at["entropy"]
    old = compare(before, after)
    assert "bits_per_byte/think" not in old
    assert old["gain/mean"] == comparison["gain/mean"] or trainer.config.run.seed != 0
    fresh = evaluate(
        trainer.model, trainer.corpus.heldout_contexts(3), trainer.config, reference=before
    )
    assert fresh["entropy_of"] == "this model"
