"""`rntp init`: two files that run as they are."""

import argparse
import io
import json
from pathlib import Path

import pytest
import yaml
from conftest import TEXT
from rntp_data_prep.config import PrepConfig

from rntp.cli import main
from rntp.commands import init
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.run.log import read_metrics


@pytest.fixture
def model(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """The tiny llama, made to see as far as the written config reaches."""
    folder = tmp_path / "tiny-model"
    folder.mkdir()
    for file in model_folders["llama"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return folder


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "some pages"
    folder.mkdir()
    rows = ({"text": f"Page number {n} is about this. " + TEXT * (8 + n)} for n in range(30))
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def call(*arguments: object) -> int:
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.slow
def test_what_it_writes_runs(
    model: Path,
    pages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """init, prep, dry run and two steps, from the folder, with paths that were given from above."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "tiny-model", "--pages", "some pages/*.jsonl", "--reward", "mean_prob"]
    assert call("init", "my run", *flags, "--steps", 2, "--yes") == 0
    told = capsys.readouterr().out
    assert "cd 'my run'" in told
    assert init.missing_pages(init.Answers(Path("my run"), "m", ("../some pages/*",), "r", 1)) == []
    monkeypatch.chdir(tmp_path / "my run")
    commands = [line.split("#")[0].split() for line in told.splitlines() if "  rntp" in line]
    assert [words[:2] for words in commands] == [
        ["rntp", "data"],
        ["rntp", "train"],
        ["rntp", "train"],
    ]
    for words in commands:
        assert call(*words[1:]) == 0, capsys.readouterr().err
        if "--dry-run" in words:
            assert not Path("runs").exists()
            assert "tokens per step" in capsys.readouterr().out
    steps = read_metrics(Path("runs/my run"))
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["reward/mean"] == pytest.approx(step["reward/mean_prob"]) for step in steps)
    assert (Path("runs/my run") / "eval/step_00000002.json").is_file()


def test_it_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    assert call("init", tmp_path, "--pages", "*.txt", "--yes") == 2
    assert "has config.yaml already" in capsys.readouterr().err
    assert (tmp_path / "config.yaml").read_text() == "mine"
    assert not (tmp_path / "prep.yaml").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "which pages to train on: --pages"),
        (["--pages", "*.txt", "--reward", "log_ration"], "there is no reward scheme 'log_ration'"),
        (["--pages", "*.txt", "--steps", "0"], "run.steps"),
    ],
)
def test_what_cannot_be_used_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    folder = tmp_path / "new"
    assert call("init", folder, *flags, "--yes") == 2
    assert message in capsys.readouterr().err
    assert not folder.exists()


def arguments(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    init.add_arguments(parser)
    return parser.parse_args(flags)


def test_it_asks_for_what_flags_leave_open(tmp_path: Path) -> None:
    said = iter(["", "hf:my/data 'my pages/*.html'", "chrf"])
    asked = []

    def ask(question: str) -> str:
        asked.append(question)
        return next(said)

    answers = init.collect(arguments(str(tmp_path)), ask)
    assert [question.split(" ")[0] for question in asked] == ["Model", "Pages", "Reward"]
    assert answers.model == init.MODEL
    assert answers.pages[0] == "hf:my/data"
    assert answers.pages[1].endswith("my pages/*.html")
    assert answers.reward == "chrf"
    # Nothing is asked that a flag has said.
    flags = arguments(str(tmp_path), "--model", "m", "--pages", "p", "--reward", "prob")
    assert init.collect(flags, lambda _: pytest.fail("asked")).reward == "prob"


def test_the_end_of_input_takes_the_default(tmp_path: Path) -> None:
    def ended(_: str) -> str:
        raise EOFError

    with pytest.raises(ConfigError, match="which pages"):
        init.collect(arguments(str(tmp_path)), ended)


def test_without_a_terminal_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked"))
    assert call("init", tmp_path / "new", "--pages", "/data/*.txt") == 0
    raw = yaml.safe_load((tmp_path / "new/prep.yaml").read_text())
    assert raw["sources"] == ["/data/*.txt"]
    assert "no file is named /data/*.txt yet" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["a: b", "#x", "- y", "{z}", "it's", 'say "so"', "$model", "ü x"])
def test_odd_values_stay_what_they_are(tmp_path: Path, value: str) -> None:
    folder = tmp_path / "new"
    answers = init.Answers(folder, value, (value, "other"), "log_ratio", 3)
    init.write(answers)
    config = Config.load(folder / "config.yaml")
    assert (config.model.spec, config.run.steps, config.run.name) == (value, 3, "new")
    assert PrepConfig.load(folder / "prep.yaml").sources == (value, "other")


def test_an_answer_is_written_for_schemes_that_grade_one(tmp_path: Path) -> None:
    for reward, tokens in (("answer_exact", 8), ("log_ratio", 0)):
        init.write(init.Answers(tmp_path / reward, "m", ("p",), reward, 3))
        config = Config.load(tmp_path / reward / "config.yaml")
        assert config.thought.answer_tokens == tokens
        assert list(config.warnings()) == []
