"""Bytes of spans of ids, against the bytes of the text that was encoded."""

import pytest
import torch
from conftest import tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rntp.model.token_bytes import ByteCounter
from rntp.model.tokenizer import add_marker, decode, encode

TEXT = "naïve – 日本 🙂 dogs\n\n and the lazy dog"


def test_byte_level_pieces_of_characters_count_as_bytes() -> None:
    tokenizer = tiny_tokenizer()
    count, ids = ByteCounter(tokenizer), encode(tokenizer, TEXT)
    assert len(ids) > 20
    assert count.span(ids, 0, len(ids)) == len(TEXT.encode()) == 46
    # Every way to cut the text in two, also within a character, adds up …
    for cut in range(len(ids) + 1):
        assert count.span(ids, 0, cut) + count.span(ids, cut, len(ids)) == 46
    # … which texts of pieces do not: half a character decodes to U+FFFD, three bytes.
    pieces = sum(len(decode(tokenizer, i).encode()) for i in ids[:, None])
    assert pieces > 46


def test_markers_count_as_they_are_spelt() -> None:
    tokenizer = tiny_tokenizer()
    marker, _ = add_marker(tokenizer, "<think>")
    assert ByteCounter(tokenizer).span(torch.tensor([marker]), 0, 1) == 7


def test_byte_fallback_pieces_are_a_byte_and_blanks_one_not_three() -> None:
    words = {"<unk>": 0, "▁the": 1, "▁dög": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = torch.tensor([1, 2, *(3 + b for b in "🙂".encode())])
    assert ByteCounter(fast).span(ids, 0, 2) == len(" the dög".encode()) == 9
    assert [ByteCounter(fast).span(ids, i, i + 1) for i in range(2, 6)] == [1, 1, 1, 1]


@pytest.mark.parametrize("decoder", [decoders.Fuse(), None])
def test_whole_word_vocabularies_are_counted_by_decoding(decoder: decoders.Decoder | None) -> None:
    """Without a decoder the tokenizer puts blanks between words: they are of the text, too."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, " né": 1, " c": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+"), "isolated")
    tokenizer.add_special_tokens([AddedToken("<x>", special=True)])
    if decoder:
        tokenizer.decoder = decoder
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = encode(fast, "a né c né")
    expected = len(" né c".encode()) + (0 if decoder else 2)
    assert ByteCounter(fast).span(ids, 1, 3) == expected
