"""The experiment on search, whole, at toy size: from any results to the table of the arms."""

import json
import sys
from pathlib import Path

import pytest
from conftest import tiny_tokenizer, write_corpus

from rntp import cli
from rntp.data import Manifest
from rntp.run.log import read_metrics
from rntp.tools.index.build import build, by_tokens

TOOLS = Path(__file__).parents[2] / "experiments" / "tools"
sys.path.insert(0, str(TOOLS))

import arms_table  # noqa: E402

pytestmark = pytest.mark.slow


def test_it_runs_from_its_bootstrap_to_its_table(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_corpus(tmp_path / "corpus", stops=True)
    small = {
        "model.dtype": "float32",
        "data.docs_per_step": 2,
        "run.steps": 2,
        "optim.warmup_steps": 0,
        "parallel.tokens_per_microbatch": 1000,
        "thought.thought_tokens": 60,
    }
    search = f"{{search: {{index: {tmp_path / 'index'}, ngram: 0, near: 2}}}}"
    small["thought.tools"] = f"{{use: {search}, calls: 1, result_tokens: 8}}"
    pages = {
        "data.source": corpus,
        "data.context_tokens": 48,
        "placement.positions_per_doc": 2,
        "placement.min_prefix_tokens": 12,
        "data.heldout_fraction": 0.3,
        "reward.horizon": 4,
    }

    def rntp(command: str, name: str, *more: str, sets: dict[str, object]) -> None:
        options = [o for key, value in (small | sets).items() for o in ("--set", f"{key}={value}")]
        cli.main([command, str(TOOLS / f"{name}.yaml"), *options, *more])

    def export(run: str, out: Path) -> Path:
        cli.main(["ckpt", "export", str(tmp_path / run), str(out)])
        return out

    cut = by_tokens(tiny_tokenizer(), 12)
    build(Manifest.load(corpus), tmp_path / "index", cut, piece_tokens=12)
    spec = {"model.spec": model_folders["llama"]}
    out = ("--out", str(tmp_path / "any"), "--contexts", "6", "--unscored", "--kinds", "read,bare")
    rntp("calls", "search", *out, sets=pages | spec)
    longest = {"data.context_tokens": 150}
    run = {"run.dir": tmp_path / "reading", "data.source": tmp_path / "any", "reward.horizon": 4}
    rntp("train", "reading", sets=run | longest | spec)
    assert read_metrics(tmp_path / "reading")[-1]["loss/ntp"] > 0
    spec = {"model.spec": export("reading", tmp_path / "reader")}
    out = (
        "--out",
        str(tmp_path / "useful"),
        "--contexts",
        "6",
        "--margin",
        "-1",
        "--kinds",
        "write",
    )
    rntp("calls", "search", *out, sets=pages | spec)
    run |= {"run.dir": tmp_path / "calling", "data.source": tmp_path / "useful"}
    rntp("train", "calling", sets=run | longest | spec)
    spec = {"model.spec": export("calling", tmp_path / "caller")}
    run = pages | {"run.dir": tmp_path / "search", "evaluation.docs": 3}
    rntp("train", "search", sets=run | spec)
    run |= {"run.dir": tmp_path / "plain", "model.spec": model_folders["llama"]}
    rntp("train", "plain", sets=run)
    cli_table = tmp_path / "SEARCH.md"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "",
            "search",
            str(tmp_path / "search"),
            f"--plain={tmp_path / 'plain'}",
            f"--out={cli_table}",
        ],
    )
    arms_table.main()
    table = cli_table.read_text()
    for arm in ("learned query", "the last 12 words", "another document's query", "over plain"):
        row = next(line for line in table.splitlines() if arm in line)
        assert "[" in row, row
    assert "seed 0, before" in table
    assert "learned over fixed" in table
    (found,) = json.loads((tmp_path / "results" / "search.json").read_text())
    row = next(line for line in table.splitlines() if "**learned query**" in line)
    for when, cell in zip(("before", "after"), row.split(" | ")[1:], strict=True):
        assert cell.startswith(f"{found[when]['learned'][0]:+.4f} [")
    first = json.loads((tmp_path / "search" / "eval" / "step_00000000.json").read_text())
    assert found["before"]["learned"][0] == pytest.approx(first["gain/mean"])
    assert found["config_digest"] == first["config_digest"]
