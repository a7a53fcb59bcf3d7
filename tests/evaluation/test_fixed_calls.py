"""Searches by fixed rules as controls: what they ask, what comes back, and what it is worth."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run

from rntp.config import Config
from rntp.data.corpus import open_corpus, open_data
from rntp.data.manifest import Manifest
from rntp.errors import ConfigError
from rntp.evaluation.fixed_calls import COMPUTATIONS, SEARCHES, by_rule, call_controls
from rntp.evaluation.measure import evaluate
from rntp.model.opening import open_model
from rntp.model.tokenizer import decode, encode
from rntp.tools.index.build import build, by_tokens
from rntp.types import Context, Rollout


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    manifest = Manifest.load(corpus)
    model = open_model(Config.parse(raw))
    build(manifest, tmp_path / "index", by_tokens(model.tokenizer, 12), piece_tokens=12)
    search = {"index": str(tmp_path / "index"), "ngram": 0, "near": 2.0}
    raw["thought"] |= {"thought_tokens": 64, "tools": {"use": {"search": search}}}
    raw["evaluation"] = {"docs": 3, "controls": ["last_words", "rare_words", "others_words"]}
    return Config.parse(raw, ["model.dtype=float32"])


def test_they_ask_with_words_of_the_page_or_of_another(config: Config) -> None:
    model = open_model(config)
    corpus = open_corpus(config, open_data(config), model.tokenizer)
    contexts = corpus.heldout_contexts(3)
    nothing = torch.zeros(2)
    rollouts = [Rollout(c, (12, 20), ((), ()), nothing, nothing) for c in contexts]
    own = by_rule(SEARCHES["last_words"], model, config, rollouts, model.tokenizer)
    others = by_rule(SEARCHES["others_words"], model, config, rollouts, model.tokenizer)
    results = 0
    for number, rollout in enumerate(rollouts):
        for place, position in enumerate(rollout.positions):
            (thought,) = own[number].thoughts[place]
            text = decode(model.tokenizer, rollout.context.token_ids[:position])
            if not thought.calls:
                assert len(thought.sampled_ids) == 0
                continue
            results += 1
            (call,) = thought.calls
            assert call.arguments == " ".join(text.split()[-12:])
            given = decode(model.tokenizer, thought.sampled_ids[thought.given][1:-1])
            assert given
            assert call.result.startswith(given.strip())
            assert thought.given.tolist() == sorted(thought.given.tolist())
            (other,) = others[number].thoughts[place]
            further = rollouts[(number + 1) % 3].context.token_ids[:position]
            assert other.calls[0].arguments == " ".join(
                decode(model.tokenizer, further).split()[-12:]
            )
    assert results >= 4


def test_an_evaluation_has_them_as_controls(config: Config) -> None:
    model = open_model(config)
    corpus = open_corpus(config, open_data(config), model.tokenizer)
    found = evaluate(model, corpus.heldout_contexts(3), config)
    assert found["controls"].keys() == {"last_words", "rare_words", "others_words"}
    for at in found["pages"][0]["positions"]:
        for logp in at["controls"].values():
            assert len(logp) == config.reward.horizon
            assert logp != at["logp_empty"]


def test_they_want_a_search(config: Config) -> None:
    raw = config.model_dump(mode="json")
    with pytest.raises(ConfigError, match="are searches"):
        Config.parse(raw, ["thought.tools={}"])
    bare = Config.parse(raw, ["thought.tools={}", "evaluation.controls=[]"])
    assert call_controls(open_model(bare), bare) == {}


def test_a_computation_is_the_first_that_has_a_result_and_fits(config: Config) -> None:
    raw = config.model_dump(mode="json")
    python = "thought.tools={use: {python: {seconds: 20}}, result_tokens: 8, seconds: 30}"
    config = Config.parse(
        raw, [python, "evaluation.controls=[expression]", "thought.thought_tokens=40"]
    )
    assert call_controls(open_model(config), config).keys() == {"expression"}
    model = open_model(config)
    pages = {
        "So\n>>> x = 6\n>>> x * 7\n": ("x = 6\nx * 7", "42"),
        f"So\n>>> x = '{'6 ' * 50}'\n>>> 6 * 8\n": ("6 * 8", "48"),
        "So\n>>> x = unknown\n>>> 5 * 9\n": ("5 * 9", "45"),
        "There is nothing to compute in here.": ("", ""),
    }
    rollouts = []
    for text in pages:
        ids = torch.cat([encode(model.tokenizer, text), encode(model.tokenizer, "2 more.")])
        position = len(encode(model.tokenizer, text))
        context = Context(0, "page", ids, "")
        rollouts.append(Rollout(context, (position,), ((),), torch.zeros(1), torch.zeros(1)))
    rule = COMPUTATIONS["expression"]
    found = by_rule(rule, model, config, rollouts, model.tokenizer)
    for rollout, (code, result) in zip(found, pages.values(), strict=True):
        ((thought,),) = rollout.thoughts
        if not code:
            assert (thought.calls, len(thought.sampled_ids)) == ((), 0)
            continue
        (call,) = thought.calls
        assert (call.name, call.arguments, call.result) == ("python", code, result)
        assert decode(model.tokenizer, thought.sampled_ids[thought.given][1:-1]) == result
        assert len(thought.sampled_ids[~thought.given]) <= 40
