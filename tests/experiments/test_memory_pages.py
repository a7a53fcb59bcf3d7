"""The planted corpus of memories: facts out of sight, and what the best memory of them is worth."""

import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

PLANTED = Path(__file__).parents[2] / "experiments" / "planted"
sys.path.insert(0, str(PLANTED))
sys.path.insert(0, str(PLANTED.parent / "memory"))

import make_memory  # noqa: E402
import memory_pages  # noqa: E402
import pages  # noqa: E402
import planted_table  # noqa: E402
import read_memories  # noqa: E402
from memory_pages import CLASSES, HORIZON, ROOM, WINDOW  # noqa: E402
from scratchpads import THINK_CLOSE, THINK_OPEN  # noqa: E402
from tokenizer import make_tokenizer, vocabulary  # noqa: E402

from rntp.config import Config  # noqa: E402
from rntp.errors import ConfigError  # noqa: E402
from rntp.model.tokenizer import (  # noqa: E402
    encode,
    load_tokenizer,
    start_id,
    tokenizer_digest,
)

PAGES = [memory_pages.make_memory_page(3, i) for i in range(300)]
LABELS = {name: label for label, name in CLASSES.items()}


def facts(text: str) -> dict[str, int]:
    """What a reader of the records knows: the last of each letter counts."""
    found = re.findall(r"^(?:-|Next) (\w) = (\d)$", text, re.MULTILINE)
    return {letter: int(digit) for letter, digit in found}


def test_the_best_memory_is_what_the_facts_say_and_the_question_wants() -> None:
    kinds = Counter()
    for page in PAGES:
        for place in page.places:
            before = "".join(page.tokens[: place.index])
            behind = "".join(page.tokens[place.index : place.index + HORIZON])
            kind = page.classes[place.index]
            kinds[kind] += 1
            known = facts(before)
            said = {a: int(b) for a, b in re.findall(r" (\w) (\d)", place.memory)}
            assert said.items() <= known.items()
            if kind == LABELS["more than fits"]:
                marked = re.findall(r"^Next (\w) =", before, re.MULTILINE)
                assert [*said] != []
                assert {*said} == {*marked}
                assert len(said) == ROOM
                assert len(known) > ROOM
                asked, digit = re.match(r"Value of (\w) is (\d)", behind).groups()
                assert known[asked] == int(digit)
                assert (place.gain > 0) == (asked in said)
            else:
                asked = re.search(r"Value of (\w) is$", before)[1]
                assert said == {asked: known[asked]}
                assert behind.startswith(f" {known[asked]}.")
                assert place.gain == math.log(10)
    assert {*kinds} == set("nmc")
    assert min(kinds.values()) > 100


def test_nothing_in_the_window_tells_a_fact_but_where_nothing_is_lost() -> None:
    for page in PAGES:
        for i, label in enumerate(page.classes):
            window = "".join(page.tokens[i - WINDOW : i])
            answers = re.findall(r"[=s] (\d)", window)
            if label == LABELS["nothing lost"]:
                assert re.search(r"- (\w) = (\d)\nValue of \1 is$", window)[2] in page.tokens[i]
            elif label in "nmc":
                assert not answers
                assert i > WINDOW


def test_a_changed_fact_stands_twice_and_the_newest_counts() -> None:
    changed = [p for p in PAGES if LABELS["changed"] in p.classes]
    assert len(changed) > 50
    for page in changed:
        given = re.findall(r"^- (\w) = (\d)$", page.text, re.MULTILINE)[:-1]  # one in the window
        (letter,) = (x for x, n in Counter(x for x, _ in given).items() if n == 2)
        old, new = (digit for x, digit in given if x == letter)
        assert old != new
        assert {place.memory for place in page.places} == {f" {letter} {new}"}


def test_marked_facts_are_asked_for_as_often_as_the_gain_takes_them_to_be() -> None:
    many = [memory_pages.make_memory_page(4, i) for i in range(3000)]
    gains = [place.gain for p in many for place in p.places if p.classes[place.index] == "m"]
    share = sum(gain > 0 for gain in gains) / len(gains)
    assert abs(share - memory_pages.OFTEN) < 3 * math.sqrt(0.09 / len(gains))
    # Right, a letter of three and its digit; wrong, a letter that the memory made less likely.
    right = math.log(12) + math.log(10) + math.log(0.3)
    wrong = math.log(12) + math.log(0.1 / 9)
    assert sorted({round(gain, 9) for gain in gains}) == [round(wrong, 9), round(right, 9)]


def test_the_base_reads_pages_and_windows_with_memories_by_rule() -> None:
    random = np.random.Generator(np.random.Philox(key=1))
    known = {*vocabulary()}
    right = others = carried = 0
    copied, silent = Counter(), 0
    for page in PAGES:
        tokens = read_memories.whole(page, random)
        carried += THINK_OPEN in tokens
        text = "".join(tokens)
        bare = re.sub(rf"{THINK_OPEN}.*?{THINK_CLOSE}", "", text, flags=re.DOTALL)
        assert bare == page.text
        given = re.findall(r"^(?:-|Next) (\w) = (\d)$", page.text, re.MULTILINE)[:-1]
        for thought in re.findall(rf"{THINK_OPEN}(.*?){THINK_CLOSE}", text, flags=re.DOTALL):
            facts_said = re.findall(r" (\w) (\d)", thought)
            assert {*facts_said} <= {*given}  # records of the page, whichever
            copied[len(facts_said)] += 1
            silent += not thought
        for n, row in enumerate(read_memories.readings(page, random)):
            assert {*row, *tokens} <= known
            assert row[0] == make_memory.UNKNOWN
            assert (THINK_OPEN in row) == (n == 1)
            end = row.index(THINK_CLOSE) + 1 if n else 1
            assert "".join(row[end:]) in page.text
            assert len(row) - end == WINDOW + HORIZON
            said = "".join(row[2 : end - 1]) if n else ""
            right += any(said == place.memory for place in page.places)
            others += bool(said) and not any(said == place.memory for place in page.places)
    assert 0.4 < carried / len(PAGES) < 0.6
    assert 0.3 < right / len(PAGES) < 0.6
    assert others > 0.2 * len(PAGES)
    # Thoughts say one record, two or three, or nothing: what to copy is not taught.
    assert min(copied[n] for n in range(4)) > 0.05 * copied.total()
    assert 0.2 < silent / copied.total() < 0.4


def test_pages_are_written_losslessly_with_their_labels(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    for page in PAGES:
        assert len(encode(tokenizer, page.text)) == len(page.tokens) == len(page.classes)
        assert len(page.tokens) <= 176
    manifest = make_memory.write_corpus(tmp_path / "corpus", 3, 40)
    labels = manifest.read(7).metadata["labels"]
    assert labels["classes"] == PAGES[7].classes
    assert {int(i) for i in labels["oracle"]} == {place.index for place in PAGES[7].places}
    assert memory_pages.make_memory_page(3, 7) == PAGES[7]
    assert memory_pages.make_memory_page(4, 7) != PAGES[7]


def test_the_newest_value_of_a_changed_fact_is_told_apart() -> None:
    for text, wanted in (
        (" b 7", True),
        (" a 1 b 7", True),
        (" b 3", False),
        (" b 3 b 7", False),
        (" a 7", False),
        ("", False),
    ):
        assert planted_table.says_newest(text, " b 7") is wanted


def test_the_base_has_a_start_token_and_the_same_ids(tmp_path: Path) -> None:
    make_memory.write_base(tmp_path / "base")
    tokenizer, old = load_tokenizer(str(tmp_path / "base")), make_tokenizer()
    assert tokenizer_digest(tokenizer) == tokenizer_digest(old)
    assert tokenizer.get_vocab() == old.get_vocab()
    assert start_id(tokenizer) == old.get_vocab()[make_memory.UNKNOWN]
    with pytest.raises(ConfigError, match=r"reading\.window"):
        start_id(old)
    config = Config.load(PLANTED.parent / "memory" / "planted.yaml")
    assert config.reading.window == WINDOW
    assert config.reward.horizon == HORIZON
    assert config.thought.thought_tokens == 2 * ROOM + 1
    assert len(pages.LETTERS) == 12
