"""`rntp eval --set`: a run measured elsewhere than it says, and never as another than it is."""

from pathlib import Path

import pytest
from test_frontier import run

from rntp import cli
from rntp.config import Config
from rntp.evaluation.target import evaluate_target

_ = run  # fixture


def measured(folder: Path, *overrides: str) -> dict:
    return evaluate_target(folder, say=lambda text: None, overrides=overrides)


def places(found: dict) -> list[tuple[str, int]]:
    return [
        (page["document_id"], at["position"]) for page in found["pages"] for at in page["positions"]
    ]


def test_other_places_of_the_same_model(run: tuple[dict, Path]) -> None:
    _, folder = run
    usual = measured(folder)
    assert len(usual["pages"]) == 3
    alike = measured(folder, "parallel.tokens_per_microbatch=60")
    assert places(alike) == places(usual)
    assert alike["nll/no_think"] == pytest.approx(usual["nll/no_think"], abs=1e-5)
    fewer = measured(folder, "evaluation.docs=2")
    assert places(fewer) == places(usual)[: len(places(fewer))]
    assert {document for document, _ in places(fewer)} < {d for d, _ in places(usual)}
    more = measured(folder, "evaluation.placement={random: {positions_per_doc: 6}}")
    assert len(places(more)) == 18
    other = measured(folder, "run.seed=11")
    assert places(other) != places(usual)
    assert (usual["seed"], other["seed"]) == (3, 11)


def test_a_run_is_not_measured_as_another(
    run: tuple[dict, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    raw, folder = run
    for override in ("thought.thought_tokens=3", "run.steps=9", "reading.mixing=0.5"):
        with pytest.raises(SystemExit) as caught:
            cli.main(["eval", str(folder), "--set", override])
        assert caught.value.code == 2
        assert f"--set {override}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["eval", str(folder), "--tasks", "arc", "--set", "evaluation.docs=2"])
    assert caught.value.code == 2
    # Of a config, whose base model is measured, all may be said.
    path = tmp_path / "base.yaml"
    path.write_text(Config.parse(raw).to_yaml())
    found = measured(path, "thought.thought_tokens=2", "evaluation.docs=2")
    most = max(
        t["num_tokens"] for p in found["pages"] for at in p["positions"] for t in at["thoughts"]
    )
    assert most <= 2
