import unicodedata

import pytest
from rntp_data_prep.clean import clean, drop_boilerplate, drop_site_header, neutralise, normalise


def test_normalise_gives_plain_composed_text() -> None:
    messy = (
        "Cafe\u0301\u00a0au\u2003lait\x00\x07\r\n"
        "\ufeffzero\u200bwidth \u00adsoft\u202e\t1  \r\n\n\n\n\nend\n"
    )
    assert normalise(messy) == "Café au lait\nzerowidth soft\t1\n\nend"
    assert normalise("a\ud800b\ue000c\ufffdd") == "abcd"
    assert normalise("  def f():\n    pass   \n") == "  def f():\n    pass"
    assert normalise("one\u2028two") == "one\ntwo"
    assert unicodedata.is_normalized("NFC", normalise(messy))


def test_ordinary_text_of_any_script_passes_unchanged() -> None:
    text = "Größe “quoted” – 東京 мир עברית 𝒳 ½ ≤ €5\n\n    x = 1  # indented"
    assert clean(text, "") == (text, 0)


@pytest.mark.parametrize(
    "line",
    [
        "Prev \t\tUp\t\t Next",
        "« Previous | Next »",
        "Table of Contents",
        "Skip to main content",
        "Home > Docs > Version 2.4 > Miscellaneous",
        "This page last modified on 2022-12-14 16:04:04 UTC",
        "© Copyright 2001-2023, Example Foundation.",
        "Copyright (c) 2020 Example",
        "All rights reserved.",
        "Available Languages:  en  |  fr  |  ko",
    ],
)
def test_lines_that_lead_through_a_site_are_dropped(line: str) -> None:
    assert drop_boilerplate(f"Before.\n\n{line}\n\nAfter.") == "Before.\n\nAfter."


@pytest.mark.parametrize(
    "line",
    [
        "Next, open the file and go up one level.",
        "Home ownership rose.",
        "The index is a B-tree.",
        ">>> a > b > c",
        "if a > b:",
        "Copyright law has changed since 1976.",
        "5. Turn left.",
    ],
)
def test_prose_that_looks_a_little_like_it_stays(line: str) -> None:
    assert drop_boilerplate(f"Before.\n{line}\nAfter.") == f"Before.\n{line}\nAfter."


def test_a_table_of_contents_is_dropped_and_a_heading_stays() -> None:
    contents = "8.1. Networks\n8.1.1. Ethernet\n  8.2 Users\nAppendix A. Tables"
    assert drop_boilerplate(f"Intro.\n{contents}\nText.") == "Intro.\nText."
    assert drop_boilerplate("8.1. Networks\n\nText.") == "8.1. Networks\n\nText."
    for steps in ("1. Open the lid\n2. Pour water\n3. Close it", "a. One\nb. Two\nc. Three"):
        assert drop_boilerplate(steps) == steps
    assert drop_boilerplate("Heading ¶\nText.") == "Heading\nText."


def test_lines_above_the_heading_are_dropped_only_if_they_are_short() -> None:
    page = "Small. Fast.\nChoose any three.\n\nWhen To Use It\n\nText."
    assert drop_site_header(page, "When to use it - The Site") == "When To Use It\n\nText."
    assert drop_site_header(page, "Another title") == page
    prose = "A long sentence that is no slogan. " * 4 + "\nTitle\nText."
    assert drop_site_header(prose, "Title") == prose


def test_special_token_strings_become_ordinary_text() -> None:
    text, count = neutralise("<think>a</think> <|im_start|>user<|im_end|> <s>[INST] </s> <THINK>")
    assert text == (
        "< think >a< /think > < |im_start| >user< |im_end| > < s >[ INST ] < /s > < THINK >"
    )
    assert count == 8
    assert neutralise(text) == (text, 0)
    for harmless in ("x < y > z", "<thinker>", "<p>", "a <| b", "if (a<s && b>c)", "<|>"):
        assert neutralise(harmless) == (harmless, 0)


def test_clean_counts_what_it_neutralised_and_cannot_be_tricked_by_invisible_characters() -> None:
    assert clean("One <th\u200bink> two.\n\nPrev\n\nHome", "") == ("One < think > two.", 1)


@pytest.mark.timeout(5)
def test_hostile_lines_take_no_time() -> None:
    for line in ("next   " * 5000 + "!x", "a >   " * 5000 + ">", "1.1 " * 50_000, "<|" * 50_000):
        assert "\n" not in clean(line, "title")[0]
