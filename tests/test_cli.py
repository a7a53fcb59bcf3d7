"""The program as people call it: exit codes, messages, and nothing heavy where it is not needed."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_run, write_corpus
from transformers import AutoModelForCausalLM, AutoTokenizer

from rntp.cli import main
from rntp.run import checkpoint
from rntp.run.log import read_metrics
from rntp.run.trained import open_trained
from rntp.runtime.faults import damage


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_run(model_folders["llama"], corpus, tmp_path / "run")))
    return path


def call(*arguments: object) -> int:
    """Exit code of the program."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, rntp, rntp.cli\n"
        "try: rntp.cli.main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'wandb', 'vllm', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_offers_what_the_contract_names() -> None:
    import rntp

    for name in rntp.__all__:
        assert getattr(rntp, name) is not None
    assert callable(rntp.evaluate)
    assert callable(rntp.rewards.register)
    with pytest.raises(AttributeError, match="nothing"):
        rntp.nothing  # noqa: B018


def test_train_report_eval_and_checkpoints(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", config) == 0
    out = capsys.readouterr().out
    last = out.strip().splitlines()
    assert last[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    assert "loss with thinking" in out
    assert out.count("eta") == 4
    assert "<html" in (tmp_path / "run" / "report.html").read_text()

    assert call("train", config) == 0  # once more: nothing to do, the same table
    out = capsys.readouterr().out
    assert "all 4 steps are done" in out
    assert "loss with thinking" in out

    assert call("eval", tmp_path / "run", "--json", "--out", tmp_path / "eval.json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_docs"] == 3
    assert len(json.loads((tmp_path / "eval.json").read_text())["pages"]) == 3
    assert call("eval", tmp_path / "run", "--checkpoint", 3) == 4
    assert "there are: 2, 4" in capsys.readouterr().err
    raw = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    raw["data"]["source"] = str(write_corpus(tmp_path / "other", 20))
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(raw))
    assert call("eval", tmp_path / "run") == 3
    assert "is not the corpus" in capsys.readouterr().err
    assert call("eval", config) == 0
    assert "decile of no-think loss" in capsys.readouterr().out

    assert call("ckpt", "export", tmp_path / "run", tmp_path / "hf") == 0
    assert call("ckpt", "export", tmp_path / "run", tmp_path / "hf") == 2  # never overwrites
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    weights = checkpoint.load(tmp_path / "run" / "checkpoints" / "step_00000004", "weights")
    for name, parameter in hf.named_parameters():
        assert torch.equal(parameter, weights[name])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.encode("<think></think>", add_special_tokens=False) == [318, 319]
    assert "step 4 of 4" in (tmp_path / "hf" / "README.md").read_text()
    assert len(hf.generate(torch.tensor([[5, 318]]), max_new_tokens=4, do_sample=False)[0]) == 6
    assert hf.generation_config.eos_token_id == 0
    _, ours, _ = open_trained(tmp_path / "run", 4, print)
    ours.hf.set_attn_implementation("sdpa")
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(hf(ids).logits, ours.hf(ids).logits, rtol=0, atol=1e-6)
    capsys.readouterr()

    assert call("report", tmp_path / "run", "--out", tmp_path / "again.html") == 0
    assert (tmp_path / "again.html").exists()
    assert call("ckpt", "ls", tmp_path / "run") == 0
    assert "step        4" in capsys.readouterr().out
    assert call("ckpt", "verify", tmp_path / "run") == 0
    (tmp_path / "run" / "checkpoints" / "step_00000002" / "state.json").write_text("{}")
    assert call("ckpt", "verify", tmp_path / "run") == 4
    assert "step_00000002: state.json" in capsys.readouterr().err
    assert call("ckpt", "ls", tmp_path / "run") == 0
    assert "DAMAGED: state.json" in capsys.readouterr().out


def test_pruning_by_command_keeps_the_last_whole_one(tmp_path: Path, capsys) -> None:
    raw = {
        "run": {"steps": 9, "dir": str(tmp_path)},
        "model": {"spec": "m"},
        "data": {"source": "d", "context_tokens": 99, "docs_per_step": 1},
        "placement": {"positions_per_doc": 1},
        "thought": {"thoughts_per_position": 2, "thought_tokens": 4},
        "reward": {"horizon": 4},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    for step in range(1, 6):
        checkpoint.save(tmp_path / "checkpoints", step, {"w": {"w": torch.ones(9)}}, {}, keep=9)
    (shard,) = (tmp_path / "checkpoints" / "step_00000005" / "w").iterdir()
    damage(shard, "flip")
    assert call("ckpt", "prune", tmp_path, "--json") == 0  # checkpoint.keep is 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["removed"] == ["step_00000001", "step_00000002", "step_00000005"]
    assert call("ckpt", "prune", tmp_path, "--keep", 1) == 0
    assert "there are: step_00000004" in capsys.readouterr().out
    assert call("ckpt", "prune", tmp_path, "--keep", 0) == 2
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert call("ckpt", "prune", tmp_path) == 2
        assert "another process is running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["optim.learning_rate=1"], 2, "optim.learning_rate: no such field"),
        (["data.source=absent"], 3, "absent"),
        (["data.context_tokens=100000"], 2, "lower data.context_tokens"),
        (["reward.horizon=40"], 2, "raise data.context_tokens"),
        (["run.dir=/proc/rntp"], 4, "0 B are free"),
    ],
)
def test_errors_have_their_exit_code(
    config: Path,
    overrides: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("train", config, *[f"--set={o}" for o in overrides]) == code
    assert message in capsys.readouterr().err


def test_a_write_that_the_system_refuses_is_told_without_a_traceback(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", config, "--set=run.steps=1", "--set=evaluation.docs=0") == 0
    (tmp_path / "file").write_text("")
    assert call("report", tmp_path / "run", "--out", tmp_path / "file" / "report.html") == 1
    assert "check the path, its permissions and the free space" in capsys.readouterr().err


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_command_quietly(config: Path) -> None:
    """`rntp … | head`: no traceback, whether it prints once or trains on."""
    prints = [sys.executable, "-m", "rntp", "config", "schema"]
    trains = [sys.executable, "-m", "rntp", "train", str(config), "--set=run.steps=2"]
    for command in (prints, trains):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        told = process.stderr.read().decode()
        assert process.wait(timeout=120) == 0, told
        assert "Traceback" not in told
        assert "BrokenPipe" not in told
    run = Path(yaml.safe_load(config.read_text())["run"]["dir"])
    assert len(read_metrics(run)) == 2
    assert "step 2/2" in (run / "log.txt").read_text()


def test_folders_that_are_not_what_they_should_be(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("ls", "verify"):
        assert call("ckpt", command, tmp_path / "absent") == 2
        assert "there is no run folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert call("ckpt", "ls", tmp_path / "empty") == 0
    assert call("ckpt", "verify", tmp_path / "empty") == 4
    assert "there is no checkpoint" in capsys.readouterr().err
    assert call("train", config, "--set=run.steps=1", "--set=evaluation.docs=0") == 0
    run = yaml.safe_load(config.read_text())["run"]["dir"]
    assert call("data", "stats", run) == 3
    assert "is the folder of a run, not a corpus" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
def test_too_little_memory_is_told_in_words(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("rntp.trainer.Trainer.train_step", no_memory)
    assert call("train", config, "--set=evaluation.docs=0") == 1
    told = capsys.readouterr().err
    assert "there is not enough memory" in told
    assert "lower parallel.tokens_per_microbatch" in told
    monkeypatch.setattr(
        "rntp.trainer.Trainer.train_step", lambda *_: (_ for _ in ()).throw(RuntimeError("else"))
    )
    with pytest.raises(RuntimeError, match="else"):
        call("train", config, "--set=evaluation.docs=0")


def test_usage_errors() -> None:
    assert call("trian") == 2
    assert call("train") == 2
    assert call("train", "absent.yaml") == 2
    assert call("report", "absent") == 2


def test_dry_run_prints_sizes_and_writes_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", config, "--dry-run", "--json") == 0
    sizes = json.loads(capsys.readouterr().out)
    branch = 5 + 2 + 3  # the last of a continuation predicts nothing
    assert sizes["tokens per step, tree"] == 3 * (48 + 6 * branch)
    assert sizes["tokens per step, one sequence a thought"] == 3 * 6 * ((8 + 44) / 2 + branch)
    assert sizes["rollouts per step"] == 18
    assert sizes["checkpoint, GB"] == pytest.approx(sizes_of_llama() * 12 / 1e9)
    assert call("train", config, "--dry-run") == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_dry_run_says_when_the_data_is_not_there(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", config, "--dry-run") == 0
    assert "data prep" not in capsys.readouterr().err
    train, evaluation = f"data.source={tmp_path / 'shards'}", f"evaluation.source={tmp_path / 'b'}"
    assert call("train", config, "--dry-run", "--set", train, "--set", evaluation) == 0
    told = capsys.readouterr().err
    assert str(tmp_path / "shards") in told
    assert str(tmp_path / "b") in told
    assert "rntp data prep" in told  # what to do


def sizes_of_llama() -> int:
    """Parameters of the tiny model as it lies in its folder, worked out by hand."""
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32
    layer = attention + 3 * 32 * 64 + 2 * 32
    return 320 * 32 + 2 * layer + 32


def test_config_commands(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("config", "show", config, "--set", "run.seed=9") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["run"]["seed"] == 9
    assert shown["optim"]["adamw"]["betas"] == [0.9, 0.95]  # defaults are written out
    assert call("config", "validate", config) == 0
    assert "is valid" in capsys.readouterr().out
    assert call("config", "schema") == 0
    assert "thought_tokens" in capsys.readouterr().out


def test_data_commands(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "verify", corpus) == 0
    assert "24 documents are whole" in capsys.readouterr().out
    assert call("data", "stats", corpus, "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 24
    assert call("data", "stats", "absent") == 3


def test_doctor(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", config, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["facts"]["threads"] == 1
    assert not any("run.dir" in line for line in told["missing"])
