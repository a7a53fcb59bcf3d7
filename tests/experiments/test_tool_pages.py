"""The planted corpus of tools: what is asked stands elsewhere, and the right call finds it."""

import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

PLANTED = Path(__file__).parents[2] / "experiments" / "planted"
sys.path.insert(0, str(PLANTED))

import make_tools  # noqa: E402
import read_tools  # noqa: E402
import tool_pages  # noqa: E402
from scratchpads import THINK_CLOSE, THINK_OPEN  # noqa: E402
from tokenizer import UNKNOWN, make_tokenizer  # noqa: E402
from tool_pages import CLASSES, RESULT_CLOSE, RESULT_OPEN, TOOL_CLOSE, TOOL_OPEN  # noqa: E402

from rntp.config import Config  # noqa: E402
from rntp.evaluation.controls import oracle  # noqa: E402
from rntp.model.tokenizer import add_marker, encode, encode_marked, prefix_ids  # noqa: E402
from rntp.tools import REGISTRY, Page  # noqa: E402
from rntp.tools.index.build import build, by_tokens  # noqa: E402
from rntp.types import Context, Labels, Oracle, Rollout  # noqa: E402

PAGES = [tool_pages.make_tool_page(3, i) for i in range(300)]


def test_answers_are_what_cards_and_sums_say_and_nothing_on_the_page() -> None:
    values = dict(text.split(" = ") for text in tool_pages.cards(3))
    assert len(values) == 276 * 12
    kinds = Counter()
    for page in PAGES:
        (desks,) = re.findall(r"^Desks: (\w+) (\w+)\.$", page.text, re.MULTILINE)
        for place in page.places:
            before, answer = "".join(page.tokens[: place.index]), page.tokens[place.index]
            kind = page.classes[place.index]
            kinds[kind] += 1
            if kind == "s":
                letter = re.search(r"Value of (\w) is$", before)[1]
                assert values[f"{' '.join(sorted(desks))} {letter}"] == answer.strip()
                assert place.gain == math.log(10)
                assert "".join(place.call.asks) == f"search {desks[0]} {desks[1]} {letter}"
            else:
                terms = re.search(r"Sum (.*) =$", before)[1]
                assert sum(map(int, terms.split(" + "))) == int(answer)
                assert place.gain == pytest.approx(4.188, abs=1e-3)
                assert "".join(place.call.asks) == f"python {terms}"
            # The answer is a token of the result, to be copied.
            assert place.call.result[-1] == answer
    assert kinds == {"s": 600, "c": 600}
    digits = Counter(text[-1] for text in tool_pages.cards(3))
    assert max(digits.values()) < 1.4 * min(digits.values())
    assert tool_pages.cards(3) != tool_pages.cards(4)


def test_the_tools_give_what_the_reader_is_taught(tmp_path: Path) -> None:
    tokenizer = make_tools.make_tool_tokenizer()
    manifest = make_tools.write_cards(tmp_path / "cards", 3)
    build(manifest, tmp_path / "index", by_tokens(tokenizer, 64), piece_tokens=64)
    search, python = REGISTRY["search"](index=tmp_path / "index"), REGISTRY["python"]()
    nowhere = Page("p", 0, "", ())
    random = np.random.Generator(np.random.Philox(key=5))
    try:
        for page in PAGES[:30]:
            for call in (*(p.call for p in page.places), read_tools.any_call(page, 30, random)):
                name, _, arguments = "".join(call.asks).partition(" ")
                if name == "search":
                    text = next(iter(search(arguments, nowhere))).text
                else:
                    text = python(arguments, nowhere)
                assert text == "".join(call.result)
                ids = encode(tokenizer, text)
                assert tokenizer.convert_ids_to_tokens(ids.tolist()) == list(call.result)
    finally:
        python.close()


def test_pages_are_written_losslessly_and_the_base_knows_their_tokens(tmp_path: Path) -> None:
    tokenizer, old = make_tools.make_tool_tokenizer(), make_tokenizer()
    assert {**tokenizer.get_vocab(), **old.get_vocab()} == tokenizer.get_vocab()
    for page in PAGES:
        ids = encode(tokenizer, page.text)
        assert tokenizer.convert_ids_to_tokens(ids.tolist()) == list(page.tokens)
        assert UNKNOWN not in tokenizer.convert_ids_to_tokens(ids.tolist())
        assert len(page.tokens) == len(page.classes) <= 96
    manifest = make_tools.write_pages(tmp_path / "corpus", 3, 40)
    labels = manifest.read(7).metadata["labels"]
    assert labels["classes"] == PAGES[7].classes
    assert {int(i) for i in labels["oracle"]} == {place.index for place in PAGES[7].places}
    assert labels["names"] == CLASSES
    assert tool_pages.make_tool_page(3, 7) == PAGES[7]
    config = Config.load(PLANTED.parent / "tools" / "planted.yaml")
    assert config.reward.horizon == tool_pages.HORIZON
    longest = max(len(p.call.asks) for p in PAGES[0].places)
    assert config.thought.thought_tokens >= longest + 3
    assert prefix_ids(tokenizer) == ()


def test_reading_is_taught_with_right_calls_and_writing_without_what_and_when() -> None:
    random = np.random.Generator(np.random.Philox(key=1))
    read, written, asked = Counter(), Counter(), Counter()
    for page in PAGES * 12:
        tokens, weights = read_tools.row(page, random)
        assert len(tokens) == len(weights)
        if THINK_OPEN not in tokens:
            assert tokens == list(page.tokens)
            continue
        begin, end = tokens.index(THINK_OPEN), tokens.index(THINK_CLOSE)
        thought, within = tokens[begin + 1 : end], weights[begin : end + 1]
        assert weights[end + 1] == read_tools.BEHIND
        assert weights[begin] == 0  # nobody thinks unasked
        label = page.classes[begin]
        right = {p.index: p.call.thought for p in page.places}.get(begin)
        what = "silent" if not thought else "right" if thought == right else "other"
        if not any(within):
            read[what] += 1
            continue
        given = thought.index(RESULT_OPEN) if thought else 0
        for token, weight in zip(thought[:given], within[1:], strict=False):
            assert weight == read_tools.WRITTEN, token
        if thought:
            assert thought[0] == TOOL_OPEN
            assert thought[given - 1] == TOOL_CLOSE
            assert thought[-1] == RESULT_CLOSE
            assert not any(within[1 + given : 1 + len(thought)])  # results are never written
        written[what] += 1
        asked[label, what == "silent"] += 1
    calls = [read_tools.any_call(p, p.places[0].index, random) for p in PAGES * 4]
    right = sum(c == p.places[0].call for c, p in zip(calls, PAGES * 4, strict=True)) / len(calls)
    assert 0.2 < right < 0.4
    assert 0.4 < read["right"] / read.total() < 0.6
    assert read["other"] > 0.15 * read.total()
    # Of the calls that are written few are right, and none of the classes is asked at more often.
    assert written["right"] / written.total() < 0.2
    assert 0.2 < written["silent"] / written.total() < 0.4
    for label in CLASSES:
        silent = asked[label, True] / (asked[label, True] + asked[label, False])
        assert 0.2 < silent < 0.4


def test_an_oracle_may_spell_a_call_and_a_page_may_not() -> None:
    tokenizer = make_tools.make_tool_tokenizer()
    for marker in (THINK_OPEN, THINK_CLOSE, *make_tools.MARKERS):
        assert add_marker(tokenizer, marker)[1] == []
    page = PAGES[0]
    place = page.places[0]
    text = "".join(place.call.thought)
    ids = encode_marked(tokenizer, text)
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == place.call.thought
    vocabulary = tokenizer.get_vocab()
    markers = torch.tensor([vocabulary[marker] for marker in make_tools.MARKERS])
    assert not torch.isin(encode(tokenizer, text), markers).any()
    labels = Labels(page.classes, CLASSES, {place.index: Oracle(text, place.gain)})
    context = Context(0, "p", encode(tokenizer, page.text), labels=labels)
    nothing = torch.zeros(1)
    rollout = Rollout(context, (place.index,), ((),), nothing, nothing)
    (found,) = oracle([rollout], tokenizer)
    assert torch.equal(found.thoughts[0][0].sampled_ids, ids)
