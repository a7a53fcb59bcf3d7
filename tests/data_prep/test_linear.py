"""What hostile pages cost: time in proportion to their length, or their end."""

import contextlib
import time
from collections.abc import Callable

import pytest

pytest.importorskip("datatrove", reason="extra `prep`")

from pathlib import Path

from datatrove.data import Document
from rntp_data_prep.books import Books
from rntp_data_prep.charsets import Undecodable, decode, own_label
from rntp_data_prep.clean import clean
from rntp_data_prep.cleaner import Cleaner
from rntp_data_prep.extract import Unextractable, bounded, extract
from rntp_data_prep.http_body import looks_like_markup, parse_response
from rntp_data_prep.steps import Unbroken


def cleaning(text: str) -> None:
    clean(text, text[:200])


def extraction(html: str) -> None:
    with contextlib.suppress(Unextractable):
        extract(f"<html><body>{html}<p>text")


def labels(html: str) -> None:
    own_label(html.encode())
    looks_like_markup(html.encode())


def heads(text: str) -> None:
    parse_response(b"HTTP/1.1 200 OK\r\n" + text.encode())


def decoding(text: str) -> None:
    with contextlib.suppress(Undecodable):
        decode(text.encode("latin-1"), "utf-8", markup=True)


CASES: list[tuple[Callable[[str], None], str, int]] = [
    (cleaning, "a" + " ", 40_000),
    (cleaning, "\t", 40_000),
    (cleaning, "\u0300\u0316", 20_000),
    (cleaning, "\u0f71\u0f72\u0f74", 20_000),
    (cleaning, " ¶", 20_000),
    (cleaning, "1.1.", 20_000),
    (cleaning, "<|x", 20_000),
    (cleaning, "\n \n", 20_000),
    (extraction, "<option>Town", 5000),
    (extraction, "<select><option>Town</option></select>", 3000),
    (extraction, "<p>x</p><pre>" + " " * 50, 400),
    (extraction, "<a href=1><b>", 100),
    (extraction, "<td>", 5000),
    (bounded, "<p '", 20_000),
    (bounded, "<!--", 20_000),
    (bounded, "<script>", 10_000),
    (bounded, "<option", 10_000),
    (labels, "<!-- <meta", 2000),
    (labels, "<meta ' \"", 2000),
    (heads, "a: b\r\n", 10_000),
    (heads, " : \n ", 10_000),
    (decoding, "\xff\xfe<", 20_000),
    (decoding, "\xd0", 30_000),
]


def seconds(step: Callable[[str], None], text: str) -> float:
    found = []
    for _ in range(3):
        begin = time.process_time()
        step(text)
        found.append(time.process_time() - begin)
    return min(found)


@pytest.mark.parametrize(("step", "unit", "count"), CASES)
def test_eight_times_the_length_takes_no_64_times_the_time(
    step: Callable[[str], None], unit: str, count: int
) -> None:
    short, long = (seconds(step, unit * n) for n in (count, 8 * count))
    assert long < 24 * short + 0.05  # the clock's own steps


def test_attributes_beyond_a_number_are_left_out_and_nothing_else() -> None:
    many = " ".join(f'a{n}="x>y"' for n in range(4000))
    html = f"<p {many}>Text of <b title=don't>it</b>.</p>"
    assert len(bounded(html)) < 4000
    assert extract(html)[1] == "Text of it."
    script = "<script>if (a<b) { x = '" + "y" * 9000 + "' }</script>"
    for whole in (
        f"<p title=don't>Some text.</p>{script}<p>It's more.</p>",
        f"<img src='data:{'x' * 9000}'><p>ok",
        "<!-- " + "<p a " * 3000 + "--><p>ok",
        "<p>ok" + "<select><option>a</select>" * 300,
    ):
        assert bounded(whole) == whole


@pytest.mark.slow
def test_a_page_that_takes_too_long_is_ended_and_the_next_one_read() -> None:
    cleaner = Cleaner(limit_s=0.2)
    page = "<p>" + "Some text. " * 40
    expected = Cleaner()(page, is_html=True)
    assert cleaner(page, is_html=True) == expected
    slow = "".join(f"<b id={n}><p>" for n in range(60_000))
    with pytest.raises(Unextractable, match="extraction_timeout"):
        cleaner("<html><body>" + slow + "x" * 3_000_000, is_html=True)
    assert cleaner(page, is_html=True) == expected


@pytest.mark.slow
def test_an_exchange_that_is_broken_off_leaves_no_answer_for_the_next_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cleaner = Cleaner()
    first, second = ("One text of a page. " * 20).strip(), ("And another one. " * 20).strip()
    assert cleaner(first, is_html=False)[1] == first
    whole = Cleaner._answer

    def interrupted(self: Cleaner, limit_s: float) -> list:
        monkeypatch.setattr(Cleaner, "_answer", whole)
        raise KeyboardInterrupt

    monkeypatch.setattr(Cleaner, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cleaner(first, is_html=False)
    assert cleaner(second, is_html=False)[1] == second


def test_texts_without_spaces_are_kept_from_splitters_of_words() -> None:
    step = Unbroken(Books(Path()))

    def verdict(text: str) -> object:
        return step.filter(Document(text, "id"))

    left_out = (False, "unbroken_text")
    assert verdict("&" * 10_000) == verdict("=_" * 5000) == verdict("a:" * 30_000) == left_out
    ruled = ("=" * 80 + "\n" + "A line of the table, " * 4 + "\n") * 300
    assert verdict(ruled) is True
    assert verdict(("渡轮七点离开港口，潮水允许时返回。" * 40 + "\n") * 300) is True
