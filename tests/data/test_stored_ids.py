"""Token ids beside the texts of a corpus: the same contexts, without a tokenizer at work."""

import io
import json
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXT, tiny_run, tiny_tokenizer

from rntp.config import Config
from rntp.data.damage import DamagedDocument
from rntp.data.manifest import Manifest
from rntp.data.manifest_writer import ShardWriter
from rntp.data.stream import ContextStream
from rntp.errors import DataError
from rntp.model.tokenizer import add_marker, encode, tokenizer_digest
from rntp.run.log import read_metrics
from rntp.trainer import Trainer

# What a page may spell: the think markers of a run, and the tokenizer's own special token.
HOSTILE = " a <think> that </think> nobody thought <|end|> é 漢字 "


def texts(count: int = 24) -> list[str]:
    words = TEXT.split()
    return [" ".join(words[n % 7 :] * (2 + n % 5)) + HOSTILE + f"number {n}" for n in range(count)]


def write(folder: Path, *, with_ids: bool, count: int = 24, shift: int = 0) -> Manifest:
    """shift: added to every stored id, to give ids that need four bytes."""
    tokenizer = tiny_tokenizer()
    writer = ShardWriter(
        folder,
        shard_bytes=20_000,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="tiny",
        prep_digest="0" * 64,
        with_ids=with_ids,
    )
    with writer:
        for n, text in enumerate(texts(count)):
            ids = encode(tokenizer, text)
            facts = {"url": f"u{n}", "title": f"Title {n}", "source": "s"}
            stored = (ids + shift).tolist() if with_ids else None
            writer.add(f"d{n}", text, facts, len(ids), stored)
        return writer.finish({"pages": count, "kept": count})


def never(text: str) -> Any:
    raise AssertionError("a text was tokenised")


def stream(manifest: Manifest, to_ids: Any, **changes: Any) -> ContextStream:
    settings: dict[str, Any] = {
        "prefix_ids": (7,),
        "seed": 3,
        "context_tokens": 40,
        "min_document_tokens": 16,
        "heldout_fraction": 0.2,
        "split": "train",
    }
    return ContextStream(manifest, to_ids, **{**settings, **changes})


def facts(context: Any) -> tuple[Any, ...]:
    return (
        context.ordinal,
        context.document_id,
        context.title,
        context.start,
        context.visit,
        str(context.token_ids.dtype),
        tuple(context.token_ids.tolist()),
    )


@pytest.mark.parametrize("windows", ["one", "all"])
def test_contexts_are_those_of_the_texts(tmp_path: Path, windows: str) -> None:
    plain = write(tmp_path / "plain", with_ids=False)
    beside = write(tmp_path / "beside", with_ids=True)
    tokenizer = tiny_tokenizer()
    for marker in ("<think>", "</think>"):  # as a run adds them
        add_marker(tokenizer, marker)
    to_ids = partial(encode, tokenizer)
    wanted = [facts(stream(plain, to_ids, windows=windows)[n]) for n in range(60)]
    without = stream(beside, never, windows=windows)
    assert [facts(without[n]) for n in range(60)] == wanted
    unused = stream(beside, to_ids, windows=windows, stored_ids=False)
    assert [facts(unused[n]) for n in range(60)] == wanted
    assert len({tokens for *_, tokens in wanted}) > 30


def test_ids_take_two_bytes_or_four_and_the_digest_covers_them(tmp_path: Path) -> None:
    two = write(tmp_path / "two", with_ids=True)
    four = write(tmp_path / "four", with_ids=True, shift=70_000)
    plain = write(tmp_path / "plain", with_ids=False)
    assert len({m.digest for m in (two, four, plain)}) == 3
    assert (plain.has_ids, two.has_ids) == (False, True)
    for number in range(two.num_docs):
        document, ids = two.read_ids(number)
        _, wide = four.read_ids(number)
        assert (ids.dtype, wide.dtype) == (np.uint16, np.uint32)
        assert ids.tolist() == encode(tiny_tokenizer(), two.read(number).text).tolist()
        assert (wide - 70_000).tolist() == ids.tolist()
        assert document.metadata == two.read(number).metadata
    assert two.verify() == []
    path = tmp_path / "two" / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["token_ids"]
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="is not an index of"):
        Manifest.load(tmp_path / "two")


def test_a_damaged_id_is_found_and_only_where_ids_are_read(tmp_path: Path) -> None:
    manifest = write(tmp_path / "c", with_ids=True, count=6)
    path = tmp_path / "c" / manifest.shard_names[0]
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        [member] = [m for m in tar if m.name.startswith("d1.") and m.name.endswith(".npy")]
    assert member.name == f"d1.{manifest.tokenizer_digest}.npy"
    damaged = bytearray(whole)
    damaged[member.offset_data + member.size - 3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedDocument, match=r"d1 .* does not match its hash"):
        manifest.read_ids(1)
    assert manifest.read(1).text == texts()[1]
    assert len(manifest.verify()) == 2  # the shard's hash, and the document
    live = stream(manifest, never, max_damaged=0.5, heldout_fraction=0.0)
    contexts = [live[n] for n in range(6)]
    assert [damage.document_id for _, damage in live.damaged] == ["d1"]
    assert all(context.document_id != "d1" for context in contexts)


def test_a_writer_wants_one_id_a_token(tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "shard_bytes": 1 << 20,
        "tokenizer_digest": "f" * 16,
        "tokenizer_spec": "x",
        "prep_digest": "0" * 64,
    }
    row = ("d", "text", {"url": "", "title": "", "source": ""}, 2)
    with ShardWriter(tmp_path / "a", with_ids=True, **common) as writer:
        for ids in (None, [1], [1, 2, 3]):
            with pytest.raises(ValueError, match="one token id a token"):
                writer.add(*row, ids)
        writer.add(*row, [1, 2])
    with (
        ShardWriter(tmp_path / "b", **common) as writer,
        pytest.raises(ValueError, match="or none for any"),
    ):
        writer.add(*row, [1, 2])
    with pytest.raises(ValueError, match="carry theirs in the metadata"):
        ShardWriter(tmp_path / "c", with_ids=True, content="token_ids", **common)


def test_other_tools_read_the_ids(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="extra `dev`")
    manifest = write(tmp_path / "c", with_ids=True)
    urls = [str(tmp_path / "c" / name) for name in manifest.shard_names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert len(samples) == manifest.num_docs
    for number, sample in enumerate(samples):
        ids = sample[f"{manifest.tokenizer_digest}.npy"]
        assert ids.tolist() == manifest.read_ids(number)[1].tolist()
        assert (sample["txt"], sample["json"]["title"]) == (texts()[number], f"Title {number}")
    with tarfile.open(urls[0]) as tar:
        member = tar.extractfile(tar.getnames()[2])
        assert member is not None
        loaded = np.load(io.BytesIO(member.read()), allow_pickle=False)
    assert loaded.tolist() == manifest.read_ids(0)[1].tolist()


def test_a_run_trains_alike_on_texts_and_on_their_ids(
    tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    rows = []
    for name, with_ids in (("plain", False), ("beside", True)):
        write(tmp_path / name, with_ids=with_ids)
        raw = tiny_run(model_folders["llama"], tmp_path / name, tmp_path / f"run-{name}")
        raw["evaluation"] = {"docs": 2, "thoughts_per_position": 1}
        Trainer(Config.parse(raw, ["run.steps=2"])).fit()
        found = read_metrics(tmp_path / f"run-{name}")
        rows.append(
            [
                {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
                for row in found
            ]
        )
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


def test_a_preparation_keeps_ids_if_asked_to(tmp_path: Path) -> None:
    pytest.importorskip("datatrove", reason="extra `prep`")
    from rntp_data_prep import PrepConfig, prepare

    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text * 3}) + "\n" for text in texts()))
    tokenizer = tiny_tokenizer()
    made = []
    for name, token_ids in (("plain", False), ("beside", True)):
        config = PrepConfig(
            sources=(str(source),),
            output=tmp_path / name,
            tokenizer="tiny",
            workers=1,
            token_ids=token_ids,
        )
        digest = tokenizer_digest(tokenizer)
        made.append(prepare(config, partial(encode, tokenizer), digest, lambda _: None))
    plain, beside = made
    assert plain.num_docs == beside.num_docs == 24
    assert beside.funnel == plain.funnel
    assert beside.funnel["neutralised_markers"] > 0
    to_ids = partial(encode, tokenizer)
    wanted = [facts(stream(plain, to_ids)[n]) for n in range(40)]
    assert [facts(stream(beside, never)[n]) for n in range(40)] == wanted
    assert "token_ids" not in beside.read(0).metadata
    assert plain.read(5).text == beside.read(5).text
    assert torch.equal(
        torch.from_numpy(beside.read_ids(5)[1].astype(np.int64)), to_ids(beside.read(5).text)
    )
