from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import DIGEST, encode, text_of, write_corpus

from rntp.data import ContextStream, check_tokenizer, data_digest
from rntp.data.manifest import Manifest
from rntp.errors import DataError
from rntp.types import Context


@pytest.fixture
def corpus(tmp_path: Path) -> Manifest:
    """60 documents of 10 to 69 words."""
    return write_corpus(tmp_path / "c", list(range(10, 70)), shard_bytes=20_000)


def make(corpus: Manifest, **changes: Any) -> ContextStream:
    settings: dict[str, Any] = {
        "seed": 5,
        "context_tokens": 24,
        "min_document_tokens": 16,
        "heldout_fraction": 0.25,
        "split": "train",
    }
    return ContextStream(corpus, encode, **{**settings, **changes})


def test_a_context_is_a_pure_function_of_its_ordinal(corpus: Manifest) -> None:
    stream = make(corpus)
    forwards = [stream[n] for n in range(150)]
    reopened = make(Manifest.load(corpus.folder))
    backwards = [reopened[n] for n in reversed(range(150))][::-1]
    assert [facts(c) for c in forwards] == [facts(c) for c in backwards]
    assert facts(make(corpus)[137]) == facts(forwards[137])
    assert [facts(make(corpus, seed=6)[n]) for n in range(9)] != [facts(c) for c in forwards[:9]]


def test_a_context_is_a_window_of_its_document(corpus: Manifest) -> None:
    stream = make(corpus, heldout_fraction=0.0)
    for n in range(120):
        context = stream[n]
        number = int(context.document_id.removeprefix("doc-"))
        length = 10 + number
        expected = range(1000 * number + context.start, 1000 * number + length)[:24]
        assert context.token_ids.dtype == torch.int64
        assert context.token_ids.tolist() == list(expected)
        assert len(context) == min(length, 24)
        assert context.ordinal == n


def test_window_starts_are_uniform_over_all_possible_starts(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", [27])
    stream = make(corpus, heldout_fraction=0.0)
    starts = [stream[n].start for n in range(800)]
    counts = [starts.count(s) for s in range(4)]
    assert sum(counts) == 800
    # 200 expected at each of the four starts, standard deviation 12.2; the bound is four of them.
    assert all(abs(count - 200) < 49 for count in counts), counts


def test_every_document_comes_once_a_pass_and_visits_are_counted(corpus: Manifest) -> None:
    stream = make(corpus)
    total = stream.num_documents
    for visit in range(3):
        contexts = [stream[visit * total + n] for n in range(total)]
        assert len({context.document_id for context in contexts}) == total
        assert {context.visit for context in contexts} == {visit}


def test_splits_are_disjoint_complete_and_independent_of_the_seed(corpus: Manifest) -> None:
    members = {
        (split, seed): {stream[n].document_id for n in range(stream.num_documents)}
        for split in ("train", "heldout")
        for seed in (0, 1)
        for stream in [make(corpus, split=split, seed=seed, min_document_tokens=1)]
    }
    train, heldout = members["train", 0], members["heldout", 0]
    assert train & heldout == set()
    assert train | heldout == set(corpus.document_ids)
    assert (members["train", 1], members["heldout", 1]) == (train, heldout)
    assert 5 <= len(heldout) <= 27  # 15 expected, standard deviation 3.4
    wider = make(corpus, split="heldout", heldout_fraction=0.5, min_document_tokens=1)
    assert heldout < {wider[n].document_id for n in range(wider.num_documents)}


def test_short_documents_are_left_out_and_counted(corpus: Manifest) -> None:
    stream = make(corpus, min_document_tokens=30, heldout_fraction=0.0)
    assert (stream.num_documents, stream.num_too_short) == (40, 20)
    lengths = {int(stream[n].document_id.removeprefix("doc-")) + 10 for n in range(40)}
    assert lengths == set(range(30, 70))


def test_all_documents_too_short_says_what_to_change(corpus: Manifest) -> None:
    with pytest.raises(DataError, match=r"none of the 60 train .* 70 tokens .* longest has 69\."):
        make(corpus, min_document_tokens=70, heldout_fraction=0.0)
    with pytest.raises(DataError, match=r"heldout split .* raise it"):
        make(corpus, split="heldout", heldout_fraction=0.0)


def test_prefix_counts_within_the_context(corpus: Manifest) -> None:
    stream = make(corpus, prefix_ids=(7, 8), heldout_fraction=0.0)
    for n in range(60):
        context = stream[n]
        number = int(context.document_id.removeprefix("doc-"))
        assert context.token_ids[:2].tolist() == [7, 8]
        assert context.token_ids[2].item() == 1000 * number + context.start
        assert len(context) == min(10 + number + 2, 24)
    with pytest.raises(ValueError, match="no room"):
        make(corpus, prefix_ids=(7,) * 24)


def test_another_tokenizer_is_refused(corpus: Manifest) -> None:
    check_tokenizer(corpus, DIGEST, "words")
    with pytest.raises(DataError, match=r"tokenizer words \(digest f{16}\).*uses other \(digest 0"):
        check_tokenizer(corpus, "0" * 16, "other")
    halved = ContextStream(
        corpus,
        lambda text: encode(text)[::2],
        seed=0,
        context_tokens=24,
        min_document_tokens=16,
        heldout_fraction=0.0,
        split="train",
    )
    with pytest.raises(DataError, match="prepared with another one"):
        halved[0]


def test_a_damaged_document_is_not_trained_on(corpus: Manifest) -> None:
    stream = make(corpus, heldout_fraction=0.0)
    context = stream[0]
    number = int(context.document_id.removeprefix("doc-"))
    for path in corpus.folder.glob("*.tar"):
        path.write_bytes(path.read_bytes().replace(text_of(9, 1000 * number).encode(), b"x" * 53))
    with pytest.raises(DataError, match=rf"document {context.document_id} "):
        stream[0]


def test_data_digest_sees_ordinals_ids_positions_and_their_order(corpus: Manifest) -> None:
    stream = make(corpus)
    contexts, positions = [stream[0], stream[1]], [[3, 5], [4]]
    digest = data_digest(contexts, positions)
    assert len(digest) == 16
    assert data_digest([make(corpus)[0], make(corpus)[1]], positions) == digest
    others = [
        data_digest(contexts, [[3, 5], [5]]),
        data_digest(contexts, [[3], [5, 4]]),
        data_digest(contexts[::-1], positions),
        data_digest([stream[0], stream[2]], positions),
        data_digest([stream[0], Context(99, "doc", stream[1].token_ids)], positions),
        data_digest([stream[0], Context(1, "doc", stream[1].token_ids + 1)], positions),
    ]
    assert len({digest, *others}) == 7
    with pytest.raises(ValueError, match="zip"):
        data_digest(contexts, [[3]])


def facts(context: Context) -> tuple[int, str, list[int], int, int]:
    ids = context.token_ids.tolist()
    return context.ordinal, context.document_id, ids, context.start, context.visit
