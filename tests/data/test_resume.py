"""What a checkpoint keeps of the data, and what a resume on other data says."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import tiny_run, write_corpus

from rntp.cli import main
from rntp.config import Config
from rntp.data.damage import Damage
from rntp.data.state import DataState, segments
from rntp.errors import CheckpointError
from rntp.run import checkpoint
from rntp.trainer import Trainer

STATE = DataState("a" * 64, 180, 321062, "b" * 16, 1, 0, 72)


def test_state_is_small_and_comes_back_from_json() -> None:
    assert len(json.dumps(STATE.as_dict())) < 280
    full = DataState(**{**STATE.__dict__, "damaged": (("a" * 64, Damage(3, "d", "s", "r")),)})
    assert DataState.from_dict(json.loads(json.dumps(full.as_dict()))) == full


def test_other_data_is_refused_with_the_difference_or_becomes_a_segment() -> None:
    saved = {"data": STATE.as_dict(), "data_digest": STATE.corpus}
    start = segments({}, STATE, 0, None, accept=False)
    assert start == [{"step": 0, "corpus": "a" * 64, "tokenizer": "b" * 16, "order": 1}]
    assert segments({**saved, "segments": start}, STATE, 9, "c", accept=False) == start
    for name, value, said in (
        ("corpus", "c" * 64, "corpus: aaaaaaaaaaaaaaaa there, cccccccccccccccc here"),
        ("documents", 181, "documents: 180 there, 181 here"),
        ("tokenizer", "d" * 16, "tokenizer: bbbb"),
        ("order", 2, "version of the order: 1 there, 2 here"),
    ):
        now = DataState(**{**STATE.__dict__, name: value})
        with pytest.raises(CheckpointError, match=rf"{said}.*(\n.*)*--accept-data-change"):
            segments({**saved, "segments": start}, now, 9, "c", accept=False)
        after = segments({**saved, "segments": start}, now, 9, "c", accept=True)
        assert after[:1] == start
        assert after[1]["step"] == 9
        assert {key: after[1][key] for key in ("corpus", "tokenizer", "order")} == {
            key: getattr(now, key) for key in ("corpus", "tokenizer", "order")
        }


@pytest.fixture
def raw(tmp_path: Path, model_folders: dict[str, Path]) -> dict:
    write_corpus(tmp_path / "corpus", 24)
    raw = tiny_run(model_folders["llama"], tmp_path / "corpus", tmp_path / "run")
    raw["evaluation"] = {"docs": 0}
    return raw


def fit(raw: dict, *sets: str, **options) -> Trainer:
    trainer = Trainer(Config.parse(raw, list(sets)), **options)
    trainer.fit()
    return trainer


def test_a_run_goes_on_with_other_data_only_when_told_to(raw: dict, tmp_path: Path) -> None:
    fit(raw, "run.steps=1")
    shutil.rmtree(tmp_path / "corpus")
    write_corpus(tmp_path / "corpus", 30)
    with pytest.raises(CheckpointError, match=r"documents: 24 there, 30 here"):
        fit(raw, "run.steps=2")
    trainer = fit(raw, "run.steps=2", accept_data_change=True)
    assert [segment["step"] for segment in trainer.state.segments] == [0, 1]
    fit(raw, "run.steps=3")  # once accepted, it is the run's data
    folder = Path(raw["run"]["dir"])
    state = checkpoint.load_state(folder / "checkpoints" / "step_00000003")
    assert [segment["step"] for segment in state["segments"]] == [0, 1]
    assert state["data"]["documents"] == 30
    assert state["data"]["frontier"] == state["next_ordinal"] == 3 * raw["data"]["docs_per_step"]


def test_damage_is_told_counted_and_remembered(raw: dict, tmp_path: Path) -> None:
    whole = (tmp_path / "corpus" / "shard-00000.tar").read_bytes()
    (tmp_path / "corpus" / "shard-00000.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r"documents .* are damaged and 0 are allowed"):
        Trainer(Config.parse(raw))
    trainer = fit(raw, "run.on_trouble={roll_back: {damaged: 0.9}}", "run.steps=1")
    folder = Path(raw["run"]["dir"])
    [row] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert row["data/damaged"] == len(trainer.corpus.train.damaged) > 5
    assert "set aside and replaced" in (folder / "log.txt").read_text()
    (tmp_path / "corpus" / "shard-00000.tar").write_bytes(whole)
    again = fit(raw, "run.on_trouble={roll_back: {damaged: 0.9}}", "run.steps=2")
    assert again.corpus.train.damaged == trainer.corpus.train.damaged


@pytest.mark.slow
def test_reading_ahead_changes_no_bit(raw: dict, tmp_path: Path) -> None:
    digests = []
    for n, sets in enumerate(([], ["data.workers=2"], ["data.workers={process: 1}"])):
        folder = fit(raw, "run.steps=3", f"run.dir={tmp_path / str(n)}", *sets).config.run.dir
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        digests.append([(row["data/digest"], row["loss/total"]) for row in lines])
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests[0])) == 3


def test_a_mixture_trains_and_its_weights_are_part_of_the_run(raw: dict, tmp_path: Path) -> None:
    write_corpus(tmp_path / "b" / "corpus", 20)
    both = {str(tmp_path / "corpus"): 1, str(tmp_path / "b" / "corpus"): 1}
    raw["data"]["source"] = both
    raw["evaluation"] = {"docs": 2, "thoughts_per_position": 1}
    trainer = fit(raw, "run.steps=2")
    assert trainer.corpus.manifest.num_docs == 44
    config = Config.parse(raw)
    raw["data"]["source"] = {**both, str(tmp_path / "corpus"): 2}
    assert Config.parse(raw).digest() != config.digest()
    assert Config.load(config.run.dir / "config.yaml").digest() == config.digest()


def test_simulate_prints_what_every_rank_reads(
    raw: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    command = ["data", "simulate", str(path), "--set", "data.docs_per_step=5"]
    main([*command, "--world", "2", "--step", "3", "--json"])
    facts = json.loads(capsys.readouterr().out)
    rows = facts["contexts"]
    assert [(row["rank"], row["ordinal"]) for row in rows] == [
        (0, 10),
        (0, 11),
        (1, 12),
        (1, 13),
        (1, 14),
    ]
    trainer = Trainer(Config.load(path, ["data.docs_per_step=5"]))
    contexts = trainer.corpus.train.take(range(10, 15))
    assert [(c.document_id, c.start, c.visit) for c in contexts] == [
        (row["document"], row["start"], row["visit"]) for row in rows
    ]
    main([*command, "--world", "3", "--steps", "2"])
    printed = capsys.readouterr().out
    assert "3 ranks" in printed.splitlines()[0]
    assert len(printed.splitlines()) == 1 + 2 + 10
