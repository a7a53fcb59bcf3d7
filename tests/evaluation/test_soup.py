"""Soups: the average by hand, what is refused, and a soup of two real runs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_run, write_corpus
from test_cli import call
from transformers import AutoModelForCausalLM

from rntp.config import Config
from rntp.errors import CheckpointError, ConfigError, DataError
from rntp.evaluation import soup
from rntp.run import checkpoint
from rntp.trainer import Trainer

SHORT = ["run.steps=2", "model.dtype=float32", "evaluation.docs=4"]


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def runs(
    model_folders: dict[str, Path], corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Two runs of one start; the second with a learning rate that ruins it."""
    root = tmp_path_factory.mktemp("soup")
    folders = []
    for number, lr in enumerate((1e-3, 0.3)):
        folders.append(root / f"run{number}")
        raw = tiny_run(model_folders["llama"], corpus, folders[-1])
        Trainer(Config.parse(raw, [*SHORT, f"optim.lr={lr}", f"run.seed={number}"])).fit()
    return folders


def test_the_average_by_hand() -> None:
    given = [
        {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[1.0]], dtype=torch.float64)},
        {"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([[2.0]], dtype=torch.float64)},
        {"a": torch.tensor([6.0, 0.0]), "b": torch.tensor([[4.0]], dtype=torch.float64)},
    ]
    found = soup.average(iter(given))
    assert torch.equal(found["a"], torch.tensor([3.0, 2.0]))
    assert found["a"].dtype == torch.float32
    assert found["b"].item() == 7 / 3
    # Summed in float64: in float32 the small ones would vanish beside the large.
    many = [{"a": torch.tensor([value])} for value in (2.0**24, 1.0, 1.0, 2.0)]
    assert soup.average(many)["a"].item() == 2**22 + 1
    assert torch.equal(given[0]["a"], torch.tensor([1.0, 2.0]))


def test_a_uniform_soup_is_the_average_with_its_table(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soup"
    assert call("soup", *runs, "--out", out) == 0
    told = capsys.readouterr().out
    steps = [run / "checkpoints" / "step_00000002" for run in runs]
    mean = soup.average(checkpoint.load(step, "weights") for step in steps)
    hf = AutoModelForCausalLM.from_pretrained(out)
    for name, parameter in hf.named_parameters():
        assert torch.equal(parameter, mean[name])
    facts = json.loads((out / "soup.json").read_text())
    assert [row["name"] for row in facts["rows"]] == ["start", *map(str, steps), "soup"]
    assert all(ingredient["used"] for ingredient in facts["ingredients"])
    start, first, _, mixed = facts["rows"]
    # The rows are those of evaluations of the same weights.
    before, after = (
        json.loads((runs[0] / "eval" / f"step_0000000{n}.json").read_text()) for n in (0, 2)
    )
    assert facts["num_docs"] == before["num_docs"] == 4
    assert start["nll/think"] == before["nll/think"]
    assert first["nll/think"] == after["nll/think"]
    assert first["gain/ci95"] == after["gain/ci95"]
    assert mixed["soup_minus_this"] == 0
    assert start["soup_minus_this"] == pytest.approx(mixed["nll/think"] - start["nll/think"])
    low, high = start["soup_minus_this_ci95"]
    assert low <= start["soup_minus_this"] <= high
    assert "uniform soup" in told
    assert "soup − this" in told
    assert "| soup |" in (out / "README.md").read_text()
    assert call("soup", *runs, "--out", out) == 2  # never overwrites


def test_a_greedy_soup_leaves_out_what_spoils_it(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On half of the held-out documents; the table is of the other half."""
    spoilt = tmp_path / "spoilt"
    (spoilt / "checkpoints").mkdir(parents=True)
    (spoilt / "config.yaml").write_bytes((runs[0] / "config.yaml").read_bytes())
    whole = runs[0] / "checkpoints" / "step_00000002"
    loud = {name: 3 * tensor for name, tensor in checkpoint.load(whole, "weights").items()}
    state = checkpoint.load_state(whole)
    checkpoint.save(spoilt / "checkpoints", 2, {"weights": loud}, state, keep=2)
    out = tmp_path / "soup"
    assert call("soup", spoilt, *runs, "--greedy", "--json", "--out", out) == 0
    told = capsys.readouterr()
    facts = json.loads(told.out)
    assert facts == json.loads((out / "soup.json").read_text())
    assert facts["num_docs"] == 2
    assert [i["used"] for i in facts["ingredients"]] == [False, True, True]
    assert "left out" in told.err
    steps = [run / "checkpoints" / "step_00000002" for run in runs]
    mean = soup.average(checkpoint.load(step, "weights") for step in steps)
    for name, parameter in AutoModelForCausalLM.from_pretrained(out).named_parameters():
        assert torch.equal(parameter, mean[name])


def test_a_checkpoint_is_an_ingredient_and_twice_is_none(runs: list[Path]) -> None:
    step = runs[0] / "checkpoints" / "step_00000002"
    found = soup.open_source(step, silent)
    assert found.state["step"] == 2
    assert found.config.run.dir.resolve() == runs[0].resolve()
    with pytest.raises(ConfigError, match="named twice"):
        soup.check_alike([found, soup.open_source(runs[0], silent)], silent)
    with pytest.raises(ConfigError, match="two checkpoints or more"):
        soup.check_alike([found], silent)
    with pytest.raises(ConfigError, match="neither a run folder nor a checkpoint"):
        soup.open_source(runs[0] / "eval", silent)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "qwen3"}, ConfigError, "another architecture .* checkpoints of one base model"),
        ({"sets": ["model.markers=[<hm>, </think>]"]}, ConfigError, "runs of one tokenizer"),
        ({"corpus": 20}, DataError, "runs of one corpus and one split"),
        ({"sets": ["data.heldout_fraction=0.4"]}, DataError, "may have read the held-out pages"),
    ],
)
def test_what_does_not_go_together_is_refused(
    change: dict,
    error: type[Exception],
    message: str,
    runs: list[Path],
    model_folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
) -> None:
    if "corpus" in change:
        corpus = write_corpus(tmp_path / "other", change["corpus"])
    raw = tiny_run(model_folders[change.get("model", "llama")], corpus, tmp_path / "run")
    sets = [*SHORT, "run.steps=1", "evaluation.docs=0", *change.get("sets", [])]
    Trainer(Config.parse(raw, sets)).fit()
    with pytest.raises(error, match=message):
        soup.soup([runs[0], tmp_path / "run"], tmp_path / "out", greedy=False, say=silent)
    assert not (tmp_path / "out").exists()


def test_another_start_is_warned_about_and_damage_refused(runs: list[Path], tmp_path: Path) -> None:
    one, two = (soup.open_source(run, silent) for run in runs)
    said: list[str] = []
    soup.check_alike([one, two], said.append)
    assert said == []
    raw = yaml.safe_load((runs[1] / "config.yaml").read_text())
    other = soup.Source(two.path, Config.parse(raw, ["model.spec=elsewhere"]), two.state)
    soup.check_alike([one, other], said.append)
    assert "seldom average to anything" in said[0]
    broken = shutil.copytree(two.path, tmp_path / "checkpoints" / "step_00000002")
    (broken / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"damaged: state\.json"):
        soup.open_source(broken, silent)
