"""How much of a lost context memories bring back: by hand, and in an evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.evaluation import evaluate
from rntp.evaluation.memory import memory_table
from rntp.model import load_model
from rntp.report import build_report
from rntp.run.log import read_metrics, read_rollouts
from rntp.show import before_after, evaluation_table
from rntp.trainer import Trainer

WINDOW, HORIZON, LONGER = 6, 4, 7


@pytest.fixture(scope="module")
def trainer(
    model_folders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Trainer:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path_factory.mktemp("run") / "run")
    sets = ["model.dtype=float32", "evaluation.thoughts_per_position=2", "run.steps=2"]
    sets += [f"reading.window={WINDOW}", "evaluation.controls=[shuffled, empty]"]
    return Trainer(Config.parse(raw, sets))


def page(*positions: tuple[int, float, float, float, float]) -> dict:
    """Each: position, log-prob of its one token with the window alone, the memory, all, more."""
    return {
        "positions": [
            {
                "position": position,
                "logp_empty": [bare],
                "logp_whole": [whole],
                "logp_longer": [longer],
                "thoughts": [{"logp_think": [memory]}],
            }
            for position, bare, memory, whole, longer in positions
        ]
    }


def test_the_cells_by_hand() -> None:
    pages = [page((10, -4, -3, -2, -3.5), (30, -2, -2, -1, -2)), page((20, -3, -3, -1, -2.5))]
    found = memory_table(pages, np.array([3.0, 1.0, 2.0]), window=4, longer=2, seed=0)
    assert (found["window"], found["longer_by"], found["num_positions"]) == (4, 2, 3)
    assert found["nll/window"] == 3
    assert found["gain"] == pytest.approx(1 / 3)
    assert found["whole"] == pytest.approx(5 / 3)
    assert found["longer"] == pytest.approx(1 / 3)
    assert found["over_longer"] == pytest.approx(0)
    assert found["recovered"] == pytest.approx(1 / 5)
    # Documents are drawn: 1 of 3 nats in the first, 0 of 2 in the second.
    assert found["recovered_ci95"] == pytest.approx([0, 1 / 3])
    lost, entropy = found["by_lost_tokens"], found["by_entropy"]
    assert [(row["low"], row["gain"], row["whole"]) for row in lost] == [
        (6, 1, 2),
        (16, 0, 2),
        (26, 0, 1),
    ]
    assert [row["recovered"] for row in lost] == [0.5, 0, 0]
    assert [row["low"] for row in entropy] == [1, 2, 3]
    assert entropy[2]["gain"] == 1


def test_where_windows_are_as_long_as_pages_nothing_is_recovered() -> None:
    """The page read behind the start token and as it stands may differ by a rounding: no share."""
    pages = [page((10, -4, -3, -3.99, -4), (30, -2, -2, -1.99, -2)), page((20, -3, -3, -3, -3))]
    found = memory_table(pages, np.array([3.0, 1.0, 2.0]), window=30, longer=2, seed=0)
    assert found["gain"] == pytest.approx(1 / 3)
    assert (found["recovered"], found["recovered_ci95"], found["by_lost_tokens"]) == (
        None,
        None,
        [],
    )
    assert [row["recovered"] for row in found["by_entropy"]] == [None, None, None]
    some = memory_table(pages, np.array([3.0, 1.0, 2.0]), window=29, longer=2, seed=0)
    assert [row["high"] for row in some["by_lost_tokens"]] == [0, 0, 1]
    assert some["recovered"] == pytest.approx(1 / 0.02)


def test_nothing_lost_has_no_share() -> None:
    found = memory_table([page((10, -2, -1, -2, -2))], np.array([1.0]), window=4, longer=2, seed=0)
    assert (found["gain"], found["whole"]) == (1, 0)
    assert found["recovered"] is found["recovered_ci95"] is None
    assert found["by_entropy"][0]["recovered"] is None


def test_an_evaluation_measures_all_four_cells(trainer: Trainer) -> None:
    """Each cell against an ordinary forward of the tokens that it may see."""
    contexts = trainer.corpus.heldout_contexts(3)
    result = evaluate(trainer.model, contexts, trainer.config)
    found = result["memory"]
    positions = [at for p in result["pages"] for at in p["positions"]]
    assert found["gain"] == pytest.approx(result["gain/mean"], abs=1e-6)
    assert (found["window"], found["longer_by"]) == (WINDOW, LONGER)
    bare = np.mean([x for at in positions for x in at["logp_empty"]])
    for name in ("whole", "longer"):
        mean = np.mean([x for at in positions for x in at[f"logp_{name}"]])
        assert found[name] == pytest.approx(mean - bare, abs=1e-6)
        assert abs(found[name]) > 1e-4
    start = torch.tensor([trainer.model.start_id])
    hf = load_model(trainer.config.model.spec).hf
    hf.set_attn_implementation("sdpa")
    for context, some in zip(contexts, result["pages"], strict=True):
        ids = context.token_ids
        for at in some["positions"]:
            p = at["position"]
            assert p > WINDOW
            for key, before in (
                ("logp_empty", torch.cat([start, ids[p - WINDOW : p]])),
                ("logp_longer", torch.cat([start, ids[max(p - WINDOW - LONGER, 0) : p]])),
                ("logp_whole", ids[:p]),
            ):
                sequence = torch.cat([before, ids[p : p + HORIZON]])
                with torch.no_grad():
                    logp = torch.log_softmax(hf(sequence[None]).logits[0, :-1], -1)
                wanted = logp.gather(1, sequence[1:, None])[-HORIZON:, 0]
                assert at[key] == pytest.approx(wanted.tolist(), abs=1e-4)
    text = evaluation_table(result)
    for line in (
        "gain over 6 tokens",
        "the whole context",
        "7 tokens more of the page",
        "tokens lost",
    ):
        assert line in text


def test_a_run_writes_down_what_was_lost(trainer: Trainer) -> None:
    trainer.fit()
    folder = trainer.config.run.dir
    row, result = (
        read_metrics(folder)[-1],
        json.loads((folder / "eval/step_00000002.json").read_text()),
    )
    assert row["gain/whole"] == pytest.approx(row["nll/no_think"] - row["nll/whole"], abs=1e-5)
    share = row["gain/mean"] / row["gain/whole"] if row["gain/whole"] > 0 else 0
    assert row["gain/recovered"] == pytest.approx(share, rel=1e-4)
    assert result["memory"]["num_positions"] == 6
    before = json.loads((folder / "eval/step_00000000.json").read_text())
    compared = trainer.comparison()
    assert compared is not None
    beside = compared["memory"]
    longer, shuffled = beside["rows"]["longer"], beside["controls"]["shuffled"]
    assert beside["longer_by"] == LONGER
    assert longer["before"] == before["memory"]["longer"] != longer["after"]
    assert longer["after"] == result["memory"]["longer"]
    assert longer["ci95_after"] == result["memory"]["longer_ci95"]
    assert shuffled["after"] == result["memory"]["controls"]["shuffled"]["gain"]
    lines = before_after(compared).splitlines()
    named = ("7 tokens more of the page", "thinking over these", "control: shuffled")
    assert [line.startswith(named) for line in lines[-5:]] == [True, True, True, False, False]
    assert f"{longer['after']:+.3f}" in lines[-5]
    assert set(result["controls"]) == {"shuffled", "empty"}
    thoughts = list(read_rollouts(folder, 2))
    assert thoughts
    for thought in thoughts:
        assert thought["lost_tokens"] == thought["position"] - WINDOW
        assert thought["prefix_tail"].endswith(thought["window"])
    assert np.mean([t["gain_whole"] for t in thoughts]) == pytest.approx(
        row["gain/whole"], abs=1e-5
    )
    report = build_report([folder], folder / "report.html").read_text()
    assert "behind 6 tokens, and behind the whole context" in report
    assert f", {thoughts[0]['lost_tokens']} tokens lost" in report
