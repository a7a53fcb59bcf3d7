"""Notebooks run from top to bottom, README's reward trains, and the citation can be read."""

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import tiny_run, write_corpus
from doc_pages import ROOT, blocks, registries_kept, spans

import rntp
from rntp import rewards
from rntp.run.log import read_metrics, read_rollouts

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As its cells stand, in order; stored without outputs, which would go stale."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(path.parent)
    names = {"__name__": "notebook"}
    with registries_kept():
        for number, cell in enumerate(cells):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    said = capsys.readouterr().out
    gains = [float(found) for found in re.findall(r"gain ([+-]\d\.\d+) nats", said)]
    assert gains[0] > 0.5
    assert gains[1] < -0.3
    assert abs(gains[2]) < 0.2


@pytest.fixture
def tiny_config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Path:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    raw["run"]["steps"] = 2
    raw["evaluation"] = {"docs": 0}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_readmes_reward_trains(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block as it is pasted, but for the config, which is a tiny one."""
    (block,) = (b for b in blocks("python") if b.page.name == "README.md")
    assert len(block.text.strip().splitlines()) <= 15
    assert "experiments/quickstart/config.yaml" in block.text
    program = block.text.replace("experiments/quickstart/config.yaml", str(tiny_config))
    monkeypatch.chdir(tmp_path)
    with registries_kept():
        exec(program, {"__name__": "pasted"})
    steps = read_metrics(tmp_path / "runs/worst-token")
    assert len(steps) == 2
    for step in steps:
        assert step["reward/mean"] == pytest.approx(step["reward/worst_token"])
        # Of four tokens the worst is worse than their mean, which is a loss.
        assert step["reward/mean"] < -step["nll/think"]


def test_every_key_of_evaluations_and_rollouts_is_explained(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    labelled = write_corpus(tmp_path / "shards", labelled=True)
    raw = tiny_run(model_folders["llama"], labelled, tmp_path / "run")
    raw["run"]["steps"] = 1
    raw["evaluation"] = {"docs": {"heldout": 3, "reused": 2}, "controls": ["shuffled", "pause"]}
    rntp.Trainer(rntp.Config.parse(raw)).fit()
    found = json.loads((tmp_path / "run/eval/step_00000001.json").read_text())
    page = "docs/evaluation.md"
    named = {text for where, text in spans() if where == page}
    assert {key for key in found if key not in named} == set()
    assert {"bound", "calibration", "deciles", "controls", "reading"} <= found.keys()
    rows = read_rollouts(tmp_path / "run", 1)
    named = {text for where, text in spans() if where == "docs/reference/run_folder.md"}
    assert {key for row in rows for key in row if key not in named} == set()
    assert {"thought", "advantage", "gain_per_token"} <= rows[0].keys()


def test_readme_counts_what_there_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"[{len(rewards.REGISTRY)} schemes]" in text
    controls = {"cpt", "mixed_sft", "random_reward", "format_only", "pause"}
    files = {path.stem for path in (ROOT / "experiments/methods").glob("*.yaml")} - {"planted"}
    assert f"of {len(files - controls)} published methods" in text
    listed = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    assert [name for name in files if f"`{name}`" not in listed] == []


def test_the_citation_can_be_read() -> None:
    """What the Citation File Format 1.2.0 asks for, and no key that it does not know."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
    known = {"abstract", "keywords", "license", "type", "version", "url", "date-released"}
    assert set(cff) <= {"cff-version", "message", "title", "authors"} | known
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] == "software"
    assert str(cff["version"]) == rntp.__version__
    assert all(set(author) <= {"name", "given-names", "family-names"} for author in cff["authors"])
