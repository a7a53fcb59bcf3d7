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
            at = page.places[-1].index
            for call in (*(p.call for p in page.places), read_tools.any_call(page, at, random)):
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


def test_reading_is_taught_with_right_calls_and_writing_as_rules_propose() -> None:
    random = np.random.Generator(np.random.Philox(key=1))
    read, written, asked = Counter(), Counter(), Counter()
    for page in PAGES * 12:
        tokens, weights = read_tools.row(page, random)
        assert len(tokens) == len(weights)
        if THINK_OPEN not in tokens:
            changed = [
                (label, token)
                for label, token, own in zip(page.classes, tokens, page.tokens, strict=True)
                if token != own
            ]
            assert {label for label, _ in changed} == {"c"}  # nobody learns to add unasked
            assert all(token.strip().isdigit() for _, token in changed)
            continue
        begin, end = tokens.index(THINK_OPEN), tokens.index(THINK_CLOSE)
        thought, within = tokens[begin + 1 : end], weights[begin : end + 1]
        label = page.classes[begin]
        assert weights[end + 1] == read_tools.BEHIND
        if thought:
            assert tokens[end + 1] == page.tokens[begin]
        assert weights[begin] == 0  # nobody thinks unasked
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
    for label, expected in (("s", 0.7 * 0.65 * 0.85), ("c", 0.7 * 0.95)):
        places = [(p, at) for p in PAGES for at in p.places if p.classes[at.index] == label] * 4
        calls = [read_tools.any_call(p, at.index, random) for p, at in places]
        right = np.mean([call == at.call for call, (_, at) in zip(calls, places, strict=True)])
        assert right == pytest.approx(expected, abs=0.08)
    assert 0.5 < read["right"] / read.total() < 0.7
    assert read["other"] > 0.1 * read.total()
    assert written["right"] / written.total() < 0.25
    for label in CLASSES:
        silent = asked[label, True] / (asked[label, True] + asked[label, False])
        assert silent == pytest.approx(0.5 if label == "e" else 0.3, abs=0.1)


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
