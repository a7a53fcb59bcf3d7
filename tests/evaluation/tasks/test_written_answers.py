"""Answers that the model writes: against an ordinary forward, with and without a thought before."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run, tiny_tokenizer

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.tasks.answers import MOST_TOKENS, Question, Writing, answers
from rntp.evaluation.tasks.thinking import thoughts_after
from rntp.model import LanguageModel, load_model
from rntp.model.tokenizer import decode, encode

TEXTS = ("The quick brown fox", "A model reads a page, thinks", "The dog does not mind")
LONG = Writing(most_tokens=12)


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    return load_model(str(model_folders["llama"]))


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    return Config.parse(raw, ["model.dtype=float32", "rollout.docs_per_batch=2"])


def questions(writing: Writing = LONG) -> list[Question]:
    tokenizer = tiny_tokenizer()
    return [Question(tuple(encode(tokenizer, text).tolist()), writing) for text in TEXTS]


def plainly(hf: torch.nn.Module, ids: list[int], most: int) -> list[int]:
    """The most likely tokens, by an ordinary forward each; the end token ends them."""
    found: list[int] = []
    while len(found) < most:
        with torch.no_grad():
            new = int(hf(torch.tensor([[*ids, *found]])).logits[0, -1].argmax())
        if new == 0:
            break
        found.append(new)
    return found


@pytest.fixture(scope="module")
def plain(model_folders: dict[str, Path]) -> torch.nn.Module:
    hf = load_model(str(model_folders["llama"])).hf
    hf.set_attn_implementation("sdpa")
    return hf


def test_without_a_thought_they_are_the_models_own(
    model: LanguageModel, plain: torch.nn.Module, config: Config
) -> None:
    given = questions()
    found = answers(model, config, given, think=False)
    wanted = [decode(model.tokenizer, torch.tensor(plainly(plain, [*q.text], 12))) for q in given]
    assert found == wanted
    assert all(found)
    assert len(set(found)) > 1
    # Company changes nothing, nor does the order.
    assert [answers(model, config, [q], think=False)[0] for q in given] == found
    assert answers(model, config, given[::-1], think=False) == found[::-1]
    # Limits differ by question.
    shorter = Question(given[0].text, Writing(most_tokens=3))
    cut = decode(model.tokenizer, torch.tensor(plainly(plain, [*given[0].text], 3)))
    assert answers(model, config, [shorter, given[1]], think=False) == [cut, found[1]]


def test_a_thought_comes_before_and_is_left_out(
    model: LanguageModel, plain: torch.nn.Module, config: Config
) -> None:
    """Text, <think> thought </think>, answer; the first stop text of the thought stops nothing."""
    given = questions()
    found = answers(model, config, given, think=True)
    thoughts = thoughts_after(model, config, [q.text for q in given], 1)
    for question, text in zip(given, found, strict=True):
        [thought] = thoughts[question.text]
        branch = [model.think_open_id, *thought.sampled_ids.tolist()]
        if not thought.closed:
            branch.append(model.think_close_id)
        ids = plainly(plain, [*question.text, *branch], 12)
        assert text == decode(model.tokenizer, torch.tensor(ids))
    # What the thought says and the answer does not: it stops nothing.
    [thought], text = thoughts[given[0].text], found[0]
    said = decode(model.tokenizer, thought.sampled_ids[: thought.num_tokens])
    stop = next(said[i : i + 2] for i in range(len(said)) if said[i : i + 2] not in text)
    stopped = Question(given[0].text, Writing(stops=(stop,), most_tokens=12))
    assert answers(model, config, [stopped], think=True) == [text]
    assert found != answers(model, config, given, think=False)


def test_the_first_stop_text_ends_an_answer(model: LanguageModel, config: Config) -> None:
    question = questions()[0]
    [whole] = answers(model, config, [question], think=False)
    assert len(whole) > 6
    middle, late = whole[3:5], whole[5:]
    at = min(whole.find(middle), whole.find(late))
    stopped = Question(question.text, Writing(stops=(late, middle), most_tokens=12))
    assert answers(model, config, [stopped], think=False) == [whole[:at]]
    absent = Question(question.text, Writing(stops=("\x07nowhere",), most_tokens=12))
    assert answers(model, config, [absent], think=False) == [whole]


def test_with_a_temperature_they_are_drawn_by_number(model: LanguageModel, config: Config) -> None:
    drawn = questions(Writing(most_tokens=12, temperature=1.5))
    found = answers(model, config, drawn, think=False)
    assert found == answers(model, config, drawn, think=False)
    assert found != answers(model, config, questions(), think=False)
    same_text = answers(model, config, [drawn[0], drawn[0]], think=False)
    assert same_text[0] == found[0] != same_text[1]


def test_a_long_text_loses_its_beginning(
    model: LanguageModel, plain: torch.nn.Module, config: Config
) -> None:
    text = questions()[0].text * 40
    room = model.max_span - LONG.most_tokens
    assert len(text) > room
    [found] = answers(model, config, [Question(text, LONG)], think=False)
    wanted = plainly(plain, [*text[-room:]], 12)
    assert found == decode(model.tokenizer, torch.tensor(wanted))
    with pytest.raises(ConfigError, match="max_gen_toks"):
        answers(model, config, [Question(text, Writing(most_tokens=255))], think=True)


def test_what_a_task_asks_for() -> None:
    assert Writing.of({}) == Writing((), MOST_TOKENS, 0.0)
    assert Writing.of({"until": "\n", "max_gen_toks": 7}) == Writing(("\n",), 7, 0.0)
    greedy = {"until": ["a", ""], "do_sample": False, "temperature": 0.7, "top_p": 0.9}
    assert Writing.of(greedy) == Writing(("a",), MOST_TOKENS, 0.0)
    assert Writing.of({"temperature": 0.0}).temperature == 0.0
    assert Writing.of({"do_sample": True}).temperature == 1.0
    assert Writing.of({"do_sample": True, "temperature": 0.6}).temperature == 0.6
    for odd in ({"do_sample": True, "top_p": 0.9}, {"num_beams": 4}):
        with pytest.raises(ConfigError, match=f"generation_kwargs {list(odd)[-1]}"):
            Writing.of(odd)
