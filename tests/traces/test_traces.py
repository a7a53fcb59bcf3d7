"""Thoughts as data: which are kept, what the files say, and that shards train what they should."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import tiny_run, tiny_tokenizer, write_corpus
from test_cli import call

from rntp.config import Config
from rntp.data import Manifest, ShardWriter
from rntp.data.corpus import open_corpus
from rntp.data.shard_format import Document
from rntp.data.token_ids import from_codes, given, to_codes
from rntp.errors import DataError
from rntp.model.tokenizer import add_marker, decode, encode, tokenizer_digest
from rntp.run.log import read_metrics, read_rollouts
from rntp.runtime.files import json_lines, read_json_lines
from rntp.traces.select import FIELDS, Wanted, overlap, select
from rntp.trainer import Trainer

OPEN, CLOSE = 318, 319


def row(gain: float | None, thought: str = "xyz", *, position: int = 9, index: int = 0) -> dict:
    return {
        "ordinal": 4,
        "position": position,
        "thought_index": index,
        "closed": True,
        "gain": gain,
        "continuation_tokens": list("abcd"),
        "thought_ids": [OPEN, *map(ord, thought), CLOSE],
    }


def kept(rows: list[dict], wanted: Wanted) -> tuple[list[tuple], Counter]:
    funnel: Counter[str] = Counter()
    found = select(rows, wanted, lambda ids: [chr(i) for i in ids], funnel)
    return [(r["position"], r["thought_index"], r["overlap"]) for r in found], funnel


def test_overlap_is_of_the_continuation() -> None:
    assert overlap(list("abcd"), list("xabcx")) == 0.5
    assert overlap(list("abcd"), list("dcba")) == 0
    assert overlap(list("ab"), list("ab")) == 1  # a short horizon has shorter n-grams


def test_the_best_of_each_position_and_why_others_are_not_kept() -> None:
    rows = [
        row(0.2),
        row(0.5, index=1),
        row(0.5, index=2),
        {**row(9.0, index=3), "closed": False},
        row(None, index=4),
        row(-0.1, index=5),
        row(0.9, "abcd", index=6),
        row(0.1, "abc", position=20),
    ]
    found, funnel = kept(rows, Wanted(min_gain=0.0, max_overlap=0.5))
    assert found == [(9, 1, 0.0), (20, 0, 0.5)]
    assert funnel == {
        "read": 8,
        "not closed": 1,
        "gain too small": 2,
        "says the continuation": 1,
        "not among the best of its position": 2,
        "kept": 2,
    }
    assert kept(rows, Wanted())[0] == [(9, 6, 1.0), (20, 0, 0.5)]
    cut, funnel = kept(rows, Wanted(unclosed=True))
    assert cut == [(9, 3, 0.0), (20, 0, 0.5)]
    assert "not closed" not in funnel
    assert kept(rows, Wanted(min_gain=0.2, max_overlap=0.0, per_position=9))[0] == [
        (9, 1, 0.0), (9, 2, 0.0), (9, 0, 0.0),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on pages that spell the markers; half of its thoughts are said to help and to close."""
    root = tmp_path_factory.mktemp("traces")
    tokenizer = tiny_tokenizer()
    writer = ShardWriter(
        root / "shards",
        shard_bytes=1 << 20,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="tiny",
        prep_digest="0" * 64,
    )
    with writer:
        for n in range(12):
            text = f"Page {n} says <think> and </think> and more. " * 3
            facts = {"url": f"https://example.org/{n}", "title": f"P{n}", "source": "test"}
            writer.add(f"page-{n}", text, facts, len(encode(tokenizer, text)))
        writer.finish({"pages": 12, "kept": 12})
    raw = tiny_run(model_folders["llama"], root / "shards", root / "run")
    sets = ["run.steps=2", "evaluation.docs=0", "data.heldout_fraction=0"]
    config = Config.parse(raw, sets)
    Trainer(config).fit()
    for step in (1, 2):
        rows = read_rollouts(config.run.dir, step)
        for number, each in enumerate(rows):
            each["closed"], each["gain"] = True, 0.5 if number % 2 else -0.5
        path = config.run.dir / "rollouts" / f"step_{step:08d}.jsonl"
        path.write_bytes(json_lines(rows))
    return config.run.dir


def test_the_file_has_the_fields_it_says_and_where_they_come_from(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "best.jsonl"
    assert call("traces", finished, "--out", out, "--min-gain", 0.1, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((tmp_path / "best.jsonl.meta.json").read_text())
    rows = read_json_lines(out)
    assert len(rows) == facts["funnel"]["kept"] == 2 * 3 * 2  # one a position
    assert facts["funnel"]["read"] == 2 * 3 * 2 * 3
    assert facts["funnel"]["gain too small"] == 18
    assert set(rows[0]) == set(FIELDS) == set(facts["fields"])
    assert {r["gain"] for r in rows} == {0.5}
    assert {r["step"] for r in rows} == {1, 2}
    manifest = json.loads((finished / "manifest.json").read_text())
    for name in ("config_digest", "data_digest", "tokenizer_digest"):
        assert facts[name] == manifest[name]
    first = read_rollouts(finished, 1)[1]
    assert rows[0]["thought"] == first["thought"]
    assert rows[0]["thought_ids"] == first["thought_ids"]

    assert call("traces", finished, "--out", out) == 2  # never overwrites
    assert call("traces", finished, "--out", tmp_path / "best.csv") == 2
    assert call("traces", finished, "--out", tmp_path / "b.jsonl", "--per-position", 0) == 2
    assert call("traces", finished, "--out", tmp_path / "b.jsonl", "--min-gain", 9) == 2
    assert "lower --min-gain" in capsys.readouterr().err
    assert not (tmp_path / "b.jsonl").exists()


def test_parquet_without_its_package_names_the_extra(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert call("traces", finished, "--out", tmp_path / "best.parquet") == 2
    assert "pip install 'rntp[parquet]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_parquet_holds_the_same_rows(finished: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("best.parquet", "best.jsonl"):
        assert call("traces", finished, "--out", tmp_path / name) == 0
    rows = parquet.read_table(tmp_path / "best.parquet").to_pylist()
    assert rows == read_json_lines(tmp_path / "best.jsonl")


def test_shards_have_real_markers_around_thoughts_and_none_from_pages(
    finished: Path, tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    folder = tmp_path / "thoughts"
    assert call("traces", finished, "--out", folder, "--shards", "--min-gain", 0.1) == 0
    assert json.loads((folder / "traces.json").read_text())["funnel"]["kept"] == 12
    manifest = Manifest.load(folder)
    assert manifest.verify() == []
    assert manifest.content == "token_ids"
    source = Manifest.load(finished.parent / "shards")
    assert source.content == "text"
    config = Config.parse(
        tiny_run(model_folders["llama"], folder, tmp_path / "run"),
        [
            "data.context_tokens=70",
            "data.heldout_fraction=0",
            "evaluation.docs=0",
            "thought.thoughts_per_position=0",
            "objective.pg_weight=0",
            "objective.continuation_weight=0",
            "objective.ntp_weight=1",
            "model.dtype=float32",
            "run.steps=1",
        ],
    )
    trainer = Trainer(config)
    tokenizer = trainer.model.tokenizer
    rows = {
        f"{step}-{r['ordinal']}-{r['position']}-{r['thought_index']}": r
        for step in (1, 2)
        for r in read_rollouts(finished, step)
    }
    contexts = [trainer.corpus.train[n] for n in range(12)]
    spelt = 0
    for context in contexts:
        origin = rows[context.document_id]
        ids = context.token_ids.tolist()
        at = ids.index(OPEN)
        assert ids.count(OPEN) == ids.count(CLOSE) == 1
        assert ids[at : at + len(origin["thought_ids"])] == origin["thought_ids"]
        assert decode(tokenizer, context.token_ids[:at]).endswith(origin["prefix_tail"][-40:])
        assert (
            decode(tokenizer, context.token_ids[ids.index(CLOSE) + 1 :]) == origin["continuation"]
        )
        spelt += decode(tokenizer, context.token_ids[:at]).count("<think>")
    assert spelt > 0  # the pages' own, in letters

    # Plain next-token training on it is training on these ids.
    contexts = trainer.corpus.train.take(range(config.data.docs_per_step))
    trainer.model.hf.set_attn_implementation("sdpa")
    nll = []
    for context in contexts:
        with torch.no_grad():
            logp = trainer.model.hf(context.token_ids[None]).logits[0].log_softmax(-1)
        nll += (-logp[:-1].gather(1, context.token_ids[1:, None])[:, 0]).tolist()
    trainer.model.hf.set_attn_implementation("rntp")
    trainer.fit()
    assert read_metrics(config.run.dir)[0]["loss/total"] == pytest.approx(
        sum(nll) / len(nll), abs=1e-4
    )


def test_mixed_shards_train_and_ordinary_pages_are_measured(
    finished: Path, tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    """As many plain pages as thoughts; the evaluation reads held-out pages of another corpus."""
    folder, pages = tmp_path / "mixed", finished.parent / "shards"
    options = ["--min-gain", 0.1]
    assert call("traces", finished, "--out", folder, "--mixed", *options) == 2
    assert call("traces", finished, "--out", folder, "--shards", "--mixed", *options) == 0
    raw = tiny_run(model_folders["llama"], folder, tmp_path / "run")
    raw["evaluation"] = {"docs": 3, "source": str(pages)}
    plain = ["thoughts_per_position=0", "pg_weight=0", "continuation_weight=0", "ntp_weight=1"]
    sections = ["thought", "objective", "objective", "objective"]
    sets = [f"{section}.{field}" for section, field in zip(sections, plain, strict=True)]
    config = Config.parse(raw, [*sets, "data.context_tokens=70", "run.steps=1"])
    trainer = Trainer(config)
    corpus = trainer.corpus
    assert corpus.manifest.num_docs == 24
    markers = [
        (context.token_ids == OPEN).sum().item()
        for context in (corpus.train[n] for n in range(corpus.train.num_documents))
    ]
    assert set(markers) == {0, 1}
    assert 0.2 < sum(markers) / len(markers) < 0.8
    heldout = {context.document_id for context in corpus.heldout_contexts(3)}
    assert heldout <= set(Manifest.load(pages).document_ids)
    trainer.fit()
    result = json.loads((config.run.dir / "eval" / "step_00000001.json").read_text())
    assert result["heldout_digest"] == Manifest.load(pages).digest != result["data_digest"]
    assert result["num_docs"] == 3


def test_a_page_cannot_forge_token_ids(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Neither by spelling a marker nor through its metadata: the corpus is of texts."""
    tokenizer = tiny_tokenizer()
    text = "I am <think> a trap </think> for readers of pages. " * 3
    length = len(encode(tokenizer, text))
    writer = ShardWriter(
        tmp_path / "shards",
        shard_bytes=1 << 20,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="tiny",
        prep_digest="0" * 64,
    )
    facts = {"url": "", "title": "", "source": "", "token_ids": [-1, 5, -2] * (length // 3)}
    with writer:
        writer.add("page", text, facts, length)
        writer.finish({"pages": 1})
    config = Config.parse(
        tiny_run(model_folders["llama"], tmp_path / "shards", tmp_path / "run"),
        ["evaluation.docs=0", "data.heldout_fraction=0", "data.context_tokens=200"],
    )
    for marker in ("<think>", "</think>"):
        add_marker(tokenizer, marker)
    manifest = Manifest.load(tmp_path / "shards")
    ids = open_corpus(config, manifest, tokenizer).train[0].token_ids
    assert torch.equal(ids, encode(tokenizer, text))
    assert not {OPEN, CLOSE} & set(ids.tolist())

    # Nor does an edited manifest turn one kind of corpus into the other.
    path = tmp_path / "shards" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "content": "token_ids"}))
    with pytest.raises(DataError, match="was edited"):
        Manifest.load(tmp_path / "shards")
    path.write_text(json.dumps({**json.loads(path.read_text()), "content": "pictures"}))
    with pytest.raises(DataError, match="install the program that wrote it"):
        Manifest.load(tmp_path / "shards")


def test_shards_need_the_runs_own_corpus(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (finished / "config.yaml").read_text()
    other = write_corpus(tmp_path / "other", 12)
    try:
        (finished / "config.yaml").write_text(
            config.replace(str(finished.parent / "shards"), str(other))
        )
        assert call("traces", finished, "--out", tmp_path / "out", "--shards") == 3
    finally:
        (finished / "config.yaml").write_text(config)
    assert "is not the corpus that the run read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_codes_are_ids_with_markers_of_any_model() -> None:
    assert to_codes([7, OPEN, 8, CLOSE], (OPEN, CLOSE)) == [7, -1, 8, -2]
    document = Document("x", "text", {"token_ids": [7, -1, 8, -2]})
    assert from_codes(document, (50, 60)).tolist() == [7, 50, 8, 60]
    for wrong in (None, [1, -7], [1.5], ["a"], [True]):
        with pytest.raises(DataError, match="no usable token ids"):
            from_codes(Document("x", "text", {"token_ids": wrong}), (50, 60))


def test_codes_of_tools_want_markers_of_tools() -> None:
    codes = [7, -1, -3, 8, -4, -5, 9, 9, -6, -2, 7]
    markers = (50, 60, 70, 80, 90, 95)
    document = Document("x", "text", {"token_ids": codes})
    ids = [7, 50, 70, 8, 80, 90, 9, 9, 95, 60, 7]
    assert from_codes(document, markers).tolist() == ids
    assert to_codes(ids, markers) == codes
    assert given(document).int().tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0]
    assert len(given(Document("x", "text", {"token_ids": [7, -1, -2]}))) == 0
    page = Document("x", "text", {"token_ids": [7, 8, -1, 9, -2], "given_tokens": 3})
    assert given(page).int().tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(DataError, match=r"thought\.tools\.use"):
        from_codes(document, (50, 60))
    with pytest.raises(DataError, match="spells one"):
        from_codes(Document("x", "text", {"token_ids": [7, 90]}), markers)
