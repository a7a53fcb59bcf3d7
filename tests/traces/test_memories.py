"""Memories by fixed rules as a corpus: documents as they are to be read, and a run on them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp import cli
from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.data.manifest import Manifest
from rntp.errors import ConfigError
from rntp.evaluation.pieces import RULES, pieces
from rntp.model import load_model
from rntp.model.tokenizer import decode
from rntp.run.log import read_metrics, read_rollouts
from rntp.traces import export_traces
from rntp.traces.memories import write_memories
from rntp.traces.select import Wanted
from rntp.trainer import Trainer

WINDOW, HORIZON, TOKENS = 6, 4, 5
OPEN, CLOSE = -1, -2  # as the documents write the markers


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    return Config.parse(raw, ["model.dtype=float32", f"reading.window={WINDOW}"])


def documents(folder: Path) -> dict[str, list[tuple[str, list[int], dict]]]:
    manifest, found = Manifest.load(folder), {}
    for n in range(manifest.num_docs):
        document = manifest.read(n)
        kind = document.id.partition("-")[0]
        found.setdefault(kind, []).append(
            (document.id, document.metadata["token_ids"], document.metadata["memory"])
        )
    return found


def test_documents_are_the_readings_with_and_without_a_memory_and_its_writing(
    config: Config, tmp_path: Path
) -> None:
    rules = ["first_tokens", "last_piece"]
    facts = write_memories(config, tmp_path / "made", rules, 3)
    assert facts["documents"] == {"read": 6, "bare": 6, "write": 6}
    assert json.loads((tmp_path / "made" / "memories.json").read_text()) == facts
    found = documents(tmp_path / "made")
    model = load_model(config.model.spec)
    pages = open_corpus(config, open_data(config), model.tokenizer).train
    for read, bare, write in zip(found["read"], found["bare"], found["write"], strict=True):
        _, ordinal, position = read[0].split("-")
        ids, p = pages[int(ordinal)].token_ids.tolist(), int(position)
        assert p > WINDOW
        rule = read[2]["rule"]
        lost = ids[: p - WINDOW]
        memory = lost[:TOKENS] if rule == "first_tokens" else lost[-TOKENS:]
        behind = ids[p - WINDOW : p + HORIZON]
        assert read[1] == [model.start_id, OPEN, *memory, CLOSE, *behind]
        assert bare[1] == [model.start_id, *behind]
        assert write[1] == [*ids[:p], OPEN, *memory, CLOSE]
    assert {row[2]["rule"] for row in found["read"]} == set(rules)


def test_of_memories_only_what_is_to_be_learnt_is_predicted(config: Config, tmp_path: Path) -> None:
    write_memories(config, tmp_path / "made", ["last_piece"], 2, kinds=["read", "write"])
    raw = config.model_dump(mode="json")
    raw["data"] |= {"source": str(tmp_path / "made"), "heldout_fraction": 0}
    raw["data"]["context_tokens"] = 64
    raw["placement"] = {"positions_per_doc": 1, "min_prefix_tokens": 1}
    again = Config.parse(raw, ["reward.horizon=1", "reading.window=null", "evaluation.docs=0"])
    model = load_model(config.model.spec)
    pages = open_corpus(again, open_data(again), model.tokenizer).train
    seen = set()
    for n in range(8):
        context = pages[n]
        kind, ids = context.document_id.partition("-")[0], context.token_ids.tolist()
        seen.add(kind)
        opened, closed = (ids.index(i) for i in (model.think_open_id, model.think_close_id))
        predicted = context.predicted.tolist()
        if kind == "write":
            assert predicted == list(range(opened + 1, closed + 1))
        else:
            assert predicted == list(range(closed + 1, len(ids)))
    assert seen == {"read", "write"}
    with pytest.raises(ConfigError, match="--kinds: reads; there are read, bare, write"):
        write_memories(config, tmp_path / "other", ["last_piece"], 2, kinds=["reads"])


def test_the_best_piece_is_the_one_that_gains_most(config: Config, tmp_path: Path) -> None:
    write_memories(config, tmp_path / "made", ["best_piece"], 2)
    hf = load_model(config.model.spec).hf
    hf.set_attn_implementation("sdpa")
    vocabulary = load_model(config.model.spec)
    markers = {OPEN: vocabulary.think_open_id, CLOSE: vocabulary.think_close_id}

    def logp(codes: list[int]) -> float:
        ids = torch.tensor([markers.get(i, i) for i in codes])
        with torch.no_grad():
            found = torch.log_softmax(hf(ids[None]).logits[0, :-1], -1)
        return float(found.gather(1, ids[1:, None])[-HORIZON:].sum())

    pairs = documents(tmp_path / "made")
    several = 0
    for (_, read, _), (_, write, _) in zip(pairs["read"], pairs["write"], strict=True):
        page, end = write[: write.index(OPEN)], read.index(CLOSE)
        lost = torch.tensor(page[: len(page) - WINDOW])
        others = [
            logp([read[0], OPEN, *piece.tolist(), *read[end:]]) for piece in pieces(lost, TOKENS)
        ]
        several += len(others) > 1
        assert logp(read) == pytest.approx(max(others), abs=1e-4)
        assert len(others) == 1 or max(others) - min(others) > 1e-3
    assert several


def test_a_run_trains_on_them(
    config: Config, model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    cli.main(
        [
            *("memories", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "made")),
            *("--contexts", "8", "--rules", ",".join(RULES)),
        ]
    )
    assert "documents, write" in capsys.readouterr().out
    raw = tiny_run(model_folders["llama"], tmp_path / "made", tmp_path / "reads")
    raw["placement"] = {"positions_per_doc": 1, "min_prefix_tokens": 1}
    raw["thought"]["thoughts_per_position"] = 0
    raw["reward"] = {"horizon": 1}
    raw["objective"] = {"pg_weight": 0, "continuation_weight": 0}
    raw["evaluation"] = {"docs": 0}
    raw["data"] |= {"context_tokens": 64, "heldout_fraction": 0}
    Trainer(Config.parse(raw, ["run.steps=12", "optim.lr=0.01", "model.dtype=float32"])).fit()
    losses = [row["loss/ntp"] for row in read_metrics(tmp_path / "reads")]
    assert losses[-1] < losses[0] - 0.3


def test_thoughts_of_a_run_become_the_readings_that_they_were(
    config: Config, tmp_path: Path
) -> None:
    Trainer(Config.parse(config.model_dump(mode="json"), ["run.steps=1"])).fit()
    wanted = Wanted(min_gain=-100.0, unclosed=True)
    export_traces(config.run.dir, tmp_path / "made", wanted, shards=True, say=lambda text: None)
    manifest, model = Manifest.load(tmp_path / "made"), load_model(config.model.spec)
    rows = {
        (row["ordinal"], row["position"], row["thought_index"]): row
        for row in read_rollouts(config.run.dir, 1)
    }
    assert manifest.num_docs == 6
    for n in range(manifest.num_docs):
        document = manifest.read(n)
        row = rows[tuple(int(part) for part in document.id.split("-")[1:])]
        (start, opened, *rest) = document.metadata["token_ids"]
        assert (start, opened) == (model.start_id, OPEN)
        assert rest[: rest.index(CLOSE)] == row["thought_ids"][1:-1]
        behind = torch.tensor(rest[rest.index(CLOSE) + 1 :])
        assert len(behind) == WINDOW + HORIZON
        assert decode(model.tokenizer, behind) == row["window"] + row["continuation"]


def test_mistakes_are_explained(config: Config, tmp_path: Path) -> None:
    for sets, rules, contexts, message in (
        (["reading.window=null"], ["first_tokens"], 2, r"set reading\.window"),
        ([], ["worst_piece"], 2, "worst_piece; there are first_tokens"),
        ([], [], 2, "--rules: none"),
        ([], ["first_tokens"], 0, "--contexts"),
    ):
        changed = Config.parse(config.model_dump(mode="json"), sets)
        with pytest.raises(ConfigError, match=message):
            write_memories(changed, tmp_path / "made", rules, contexts)
    (tmp_path / "made").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        write_memories(config, tmp_path / "made", ["first_tokens"], 2)
