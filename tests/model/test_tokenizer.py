"""Texts are encoded as the characters they are: no page can forge a marker."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_run, tiny_tokenizer
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.data.manifest_writer import ShardWriter
from rntp.data.shard_format import Document
from rntp.data.stream import ContextStream
from rntp.data.token_ids import CLOSE, OPEN, from_codes
from rntp.errors import ConfigError, DataError
from rntp.model import load_model
from rntp.model.tokenizer import (
    add_marker,
    decode,
    encode,
    encode_unguarded,
    load_tokenizer,
    tokenizer_digest,
)

FORGED = "a page says <think> here, <think><think> there, and </think>"


def with_markers(
    special: bool = False, normalized: bool = False
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A tokenizer that has the markers as its own tokens, and is told that they are markers."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(m, special=special, normalized=normalized) for m in ("<think>", "</think>")]
    )
    return tokenizer, [add_marker(tokenizer, m)[0] for m in ("<think>", "</think>")]


def test_the_tokenizer_itself_would_forge_them() -> None:
    tokenizer, markers = with_markers()
    assert encode_unguarded(tokenizer, FORGED).tolist().count(markers[0]) == 3


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_no_marker_comes_from_text(special: bool, normalized: bool) -> None:
    tokenizer, markers = with_markers(special, normalized)
    ids = encode(tokenizer, FORGED)
    assert not torch.isin(ids, torch.tensor(markers)).any()
    assert decode(tokenizer, ids) == FORGED
    again = pickle.loads(pickle.dumps(tokenizer))  # as a loader's worker gets it
    assert encode(again, FORGED).tolist() == ids.tolist()


def test_text_without_markers_is_encoded_as_ever() -> None:
    plain, (guarded, _) = tiny_tokenizer(), with_markers()
    text = "The quick brown fox < think > and </thin k>. " * 5
    assert encode(guarded, text).tolist() == encode(plain, text).tolist()


def test_a_normalizer_makes_no_marker_of_other_characters() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=True)])
    marker, _ = add_marker(tokenizer, "<think>")
    text = "the dog ＜think＞ does not mind"
    assert marker in encode_unguarded(tokenizer, text).tolist()
    assert marker not in encode(tokenizer, text).tolist()


def test_many_forgeries_take_no_longer_than_their_length() -> None:
    tokenizer, markers = with_markers()
    ids = encode(tokenizer, "<think>" * 20_000)
    assert not torch.isin(ids, torch.tensor(markers)).any()


def test_a_character_that_is_a_marker_is_refused_in_words() -> None:
    tokenizer = tiny_tokenizer()
    add_marker(tokenizer, "x")
    with pytest.raises(ConfigError, match=r"model\.markers"):
        encode(tokenizer, "a fox")
    assert len(encode(tokenizer, "a dog"))


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("windows", ["one", "all"])
def test_prepared_pages_cannot_forge_them(tmp_path: Path, stored: bool, windows: str) -> None:
    """Prepared before anybody knew the run's markers, with their ids among the token ids."""
    tokenizer, markers = with_markers()
    texts = [FORGED, "The quick brown fox jumps over the lazy dog. " * 3]
    writer = ShardWriter(
        tmp_path / "c",
        shard_bytes=20_000,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="tiny",
        prep_digest="0" * 64,
        with_ids=stored,
    )
    with writer:
        for number, text in enumerate(texts):
            ids = encode_unguarded(tokenizer, text).tolist()
            facts = {"url": "u", "title": "t", "source": "s"}
            writer.add(f"d{number}", text, facts, len(ids), ids if stored else None)
        manifest = writer.finish({"pages": 2, "kept": 2})
    stream = ContextStream(
        manifest,
        lambda text: encode(tokenizer, text),
        unguarded=lambda text: encode_unguarded(tokenizer, text),
        seed=0,
        context_tokens=200,
        min_document_tokens=4,
        heldout_fraction=0.0,
        split="train",
        markers=(markers[0], markers[1]),
        windows=windows,
    )
    contexts = {stream[n].document_id: stream[n].token_ids for n in range(2)}
    assert not torch.isin(torch.cat(list(contexts.values())), torch.tensor(markers)).any()
    forged = decode(tokenizer, contexts["d0"])
    assert forged == FORGED if windows == "one" else FORGED.startswith(forged)
    assert decode(tokenizer, contexts["d1"]) == texts[1]


def test_written_ids_of_markers_are_refused_and_codes_are_not() -> None:
    markers = (300, 301)
    good = Document("d", "", {"token_ids": [5, OPEN, 6, CLOSE, 7]})
    assert from_codes(good, markers).tolist() == [5, 300, 6, 301, 7]
    with pytest.raises(DataError, match="spells one"):
        from_codes(Document("d", "", {"token_ids": [5, 300, 6]}), markers)


@pytest.mark.parametrize("kind", ["prepared", "with ids", "live"])
def test_no_path_to_a_run_forges_them(
    model_folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """A model whose tokenizer has the markers as ordinary tokens, and pages that spell them."""
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    with_markers()[0].save_pretrained(folder)
    model = load_model(str(folder))
    markers = torch.tensor([model.think_open_id, model.think_close_id])
    texts = [f"{FORGED} and number {n} goes on. " * 3 for n in range(12)]
    # As it was prepared: by a tokenizer that knew of no run's markers.
    plain = load_tokenizer(str(folder))
    forged = encode(plain, texts[0])
    assert torch.isin(forged, markers).any()
    source = tmp_path / "pages.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    if kind != "live":
        source = tmp_path / "corpus"
        writer = ShardWriter(
            source,
            shard_bytes=20_000,
            tokenizer_digest=tokenizer_digest(plain),
            tokenizer_spec="tiny",
            prep_digest="0" * 64,
            with_ids=kind == "with ids",
        )
        with writer:
            for n, text in enumerate(texts):
                ids = encode(plain, text).tolist()
                facts = {"url": "u", "title": "t", "source": "s"}
                writer.add(f"d{n}", text, facts, len(ids), ids if kind == "with ids" else None)
            writer.finish({"pages": 12, "kept": 12})
    config = Config.parse(
        tiny_run(folder, source, tmp_path / "run"),
        ["data.context_tokens=200", "evaluation.docs=2"],
    )
    corpus = open_corpus(config, open_data(config), model.tokenizer)
    try:
        contexts = [*corpus.heldout_contexts(2), *corpus.train.take(range(8))]
    finally:
        corpus.close()
    assert len(contexts) == 10
    for context in contexts:
        assert not torch.isin(context.token_ids, markers).any()
        assert "think" in decode(model.tokenizer, context.token_ids)
