from collections import Counter
from pathlib import Path

import pytest
from corpus import encode, write_corpus

from rntp import rng
from rntp.data.manifest import Manifest
from rntp.data.mixture import SLOTS, Deal, MixedStream, Mixture, shares, stream_seed
from rntp.data.stream import ContextStream
from rntp.errors import ConfigError


def stream(manifest: Manifest, seed: int, **changes) -> ContextStream:
    settings = {
        "seed": seed,
        "context_tokens": 24,
        "min_document_tokens": 10,
        "heldout_fraction": 0.0,
        "split": "train",
    }
    return ContextStream(manifest, encode, **{**settings, **changes})


def test_weights_become_shares_that_add_up() -> None:
    assert shares({"a": 3, "b": 1}) == [750, 250]
    assert shares({"a": 1, "b": 1, "c": 1}) == [334, 333, 333]
    assert sum(shares({"a": 0.7, "b": 0.2, "c": 0.1123})) == SLOTS
    with pytest.raises(ConfigError, match="b has less than 1 context in 1000"):
        shares({"a": 1, "b": 0.0001})


def test_a_deal_gives_every_ordinal_of_every_corpus_once_and_in_proportion() -> None:
    deal = Deal([600, 300, 100])
    dealt = [deal[n] for n in range(3 * SLOTS)]
    for corpus, share in enumerate((600, 300, 100)):
        inner = [i for c, i in dealt if c == corpus]
        assert inner == list(range(3 * share))
        for first in range(0, 3 * SLOTS - 50, 7):
            part = sum(c == corpus for c, _ in dealt[first : first + 50])
            assert abs(part - 50 * share / SLOTS) <= 2
    assert deal[10**12] == (0, 6 * 10**11)


def test_a_mixture_is_a_stream_like_any_other(tmp_path: Path) -> None:
    web = write_corpus(tmp_path / "web", [30] * 90)
    books = write_corpus(tmp_path / "books", [31] * 10)
    parts = [shares({"web": 3, "books": 1}), [web, books]]
    seeds = [stream_seed(7, m) for m in parts[1]]
    mixed = MixedStream([stream(m, s) for m, s in zip(parts[1], seeds, strict=True)], parts[0])
    # Books are used up first: 10 of them, one context in four.
    assert 38 <= mixed.num_documents <= 44
    drawn = [mixed[n] for n in range(400)]
    assert [c.ordinal for c in drawn] == list(range(400))
    first = drawn[: mixed.num_documents]
    assert {c.visit for c in first} == {0}
    assert mixed[mixed.num_documents].visit == 1
    from_books = [c for c in drawn if c.token_ids.shape == (24,) and c.visit > 0]
    assert from_books
    assert len(set(seeds)) == 2
    whole = Mixture(parts[1], parts[0])
    assert whole.num_docs == 100
    assert whole.total_tokens == 30 * 90 + 310
    digests = {Mixture(parts[1], s).digest for s in ([750, 250], [250, 750])}
    assert len(digests | {web.digest, books.digest}) == 4


def test_pieces_give_every_token_once_a_pass(tmp_path: Path) -> None:
    lengths = [10, 24, 25, 47, 48, 49, 100, 12]
    corpus = write_corpus(tmp_path / "c", lengths)
    cut = stream(corpus, 3, windows="all")
    assert cut.num_documents == sum(-(-length // 24) for length in lengths) == 17
    for visit in range(2):
        seen: Counter[int] = Counter()
        for n in range(visit * 17, (visit + 1) * 17):
            context = cut[n]
            number = int(context.document_id.removeprefix("doc-"))
            assert context.visit == visit
            assert 10 <= len(context) <= 24
            assert context.token_ids[0].item() == 1000 * number + context.start
            seen.update(context.token_ids.tolist())
        assert set(seen.values()) == {1}
        assert len(seen) == sum(lengths)
    with pytest.raises(ConfigError, match=r"pieces of 12 to 24 tokens, and a context needs 13"):
        stream(corpus, 3, windows="all", min_document_tokens=13)


def test_one_draw_is_the_draw_of_the_tensor_version() -> None:
    for seed, ordinal in ((0, 0), (5, 137), (2**40, 2**40 + 3)):
        expected = rng.uniform(seed, "window", ordinal).item()
        assert rng.one(seed, "window", ordinal) == expected
        assert rng.one(seed, "other", ordinal) != expected
