"""Stop texts found token by token are those of the whole text, in time linear in its length."""

import pytest
from conftest import tiny_tokenizer

from rntp.evaluation.tasks.stops import StoppedText
from rntp.model.tokenizer import decode, encode

TEXT = "The quick brown fox — größer, 漢字 🚢 — jumps. \n\nQuestion: over the lazy dog"


@pytest.mark.parametrize(
    "stops", [("\n\n",), ("Question:", "\n"), ("🚢",), ("x",), ("nowhere",), (), (". \n\nQ", "zzz")]
)
def test_the_text_ends_where_the_whole_one_would(stops: tuple[str, ...]) -> None:
    tokenizer = tiny_tokenizer()
    ids = encode(tokenizer, TEXT).tolist()
    whole = decode(tokenizer, encode(tokenizer, TEXT))
    ends = [whole.find(stop) for stop in stops if stop in whole]
    written = StoppedText(tokenizer, stops)
    stopped = [written.add(token) for token in ids]
    assert any(stopped) == bool(ends)
    assert written.text() == (whole[: min(ends)] if ends else whole)
    if ends:  # found with the token that completes it
        upto = StoppedText(tokenizer, stops)
        for token in ids[: stopped.index(True) + 1]:
            upto.add(token)
        assert upto.text() == written.text()
        earlier = decode(tokenizer, encode(tokenizer, TEXT)[: stopped.index(True)])
        assert not any(stop in earlier for stop in stops)


def test_a_piece_of_a_character_ends_nothing_before_it_is_whole() -> None:
    tokenizer = tiny_tokenizer()
    ids = encode(tokenizer, "🚢").tolist()
    assert len(ids) > 1
    written = StoppedText(tokenizer, ("🚢",))
    assert [written.add(token) for token in ids] == [False] * (len(ids) - 1) + [True]


def test_each_token_is_decoded_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0

    def counted(tokenizer: object, ids: object) -> str:
        nonlocal decoded
        decoded += len(ids)  # type: ignore[arg-type]
        return decode(tokenizer, ids)  # type: ignore[arg-type]

    monkeypatch.setattr("rntp.evaluation.tasks.stops.decode", counted)
    tokenizer = tiny_tokenizer()
    ids = encode(tokenizer, "The quick brown fox jumps. " * 200).tolist()
    written = StoppedText(tokenizer, ("nowhere",))
    assert not any(written.add(token) for token in ids)
    written.text()
    assert decoded < 8 * len(ids)
