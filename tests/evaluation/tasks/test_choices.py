"""Likelihoods of given answers: against an ordinary forward, and under shared thoughts."""

import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_run, tiny_tokenizer

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.tasks import evaluate_tasks
from rntp.evaluation.tasks.choices import likelihoods
from rntp.evaluation.tasks.room import Cuts
from rntp.model import LanguageModel, load_model
from rntp.model.tokenizer import encode
from rntp.rollout.engine import open_engine
from rntp.types import Context, Rollout

TEXTS = ("The quick brown fox", "A model reads a page, thinks")
ANSWERS = (" jumps over the lazy dog", " and", " reads on, and then")


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    return load_model(str(model_folders["llama"]))


@pytest.fixture
def config(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> Config:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    return Config.parse(raw, ["model.dtype=float32", "rollout.docs_per_batch=4"])


def choices() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    tokenizer = tiny_tokenizer()

    def ids(text: str) -> tuple[int, ...]:
        return tuple(encode(tokenizer, text).tolist())

    return [(ids(text), ids(answer)) for text in TEXTS for answer in ANSWERS]


def plainly(hf: torch.nn.Module, text: list[int], answer: tuple[int, ...]) -> tuple[float, bool]:
    """By an ordinary forward: log-prob of the answer, and whether each token is the arg-max."""
    with torch.no_grad():
        logp = hf(torch.tensor([[*text, *answer]])).logits[0].log_softmax(-1)
    rows = logp[len(text) - 1 : -1]
    wanted = torch.tensor(answer)
    return float(rows.gather(1, wanted[:, None]).sum()), bool((rows.argmax(-1) == wanted).all())


def test_without_thoughts_they_are_the_models_own(
    model: LanguageModel, model_folders: dict[str, Path], config: Config
) -> None:
    """In batches of unlike length, given back in the order of the questions."""
    plain = load_model(str(model_folders["llama"])).hf
    plain.set_attn_implementation("sdpa")
    given = choices()
    best = int(plain(torch.tensor([given[0][0]])).logits[0, -1].argmax())
    given.append((given[0][0], (best,)))
    found = likelihoods(model, config, given, thoughts=0)
    for (text, answer), each in zip(given, found, strict=True):
        logprob, greedy = plainly(plain, list(text), answer)
        assert each.logprob == pytest.approx(logprob, abs=1e-3)
        assert each.greedy == greedy
    assert found[-1].greedy
    assert not all(each.greedy for each in found)


def test_with_thoughts_they_are_means_after_the_same_thoughts(
    model: LanguageModel,
    model_folders: dict[str, Path],
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """(1/K) Σ p(answer | text, <think> thought </think>), by one ordinary forward a thought."""
    sampled: list[Rollout] = []

    def spying(*arguments: object, **more: object) -> object:
        engine = open_engine(*arguments, **more)  # type: ignore[arg-type]
        sample = engine.sample

        def recorded(contexts: list[Context], *rest: object) -> list[Rollout]:
            fresh = sample(contexts, *rest)  # type: ignore[arg-type]
            sampled.extend(fresh)
            return fresh

        engine.sample = recorded  # type: ignore[method-assign,assignment]
        return engine

    monkeypatch.setattr("rntp.evaluation.tasks.thinking.open_engine", spying)
    plain = load_model(str(model_folders["llama"])).hf
    plain.set_attn_implementation("sdpa")
    given = choices()
    found = likelihoods(model, config, given, thoughts=3)
    assert len(sampled) == len(TEXTS)  # once a text, not once an answer
    for (text, answer), each in zip(given, found, strict=True):
        thoughts = next(
            r.thoughts[0]
            for r in sampled
            if tuple(r.context.token_ids[: r.positions[0]].tolist()) == text
        )
        assert len(thoughts) == 3
        logps = []
        for thought in thoughts:
            branch = [model.think_open_id, *thought.sampled_ids.tolist()]
            if not thought.closed:
                branch.append(model.think_close_id)
            logps.append(plainly(plain, [*text, *branch], answer)[0])
        wanted = math.log(sum(math.exp(x - max(logps)) for x in logps) / 3) + max(logps)
        assert each.logprob == pytest.approx(wanted, abs=1e-3)
    assert likelihoods(model, config, given, thoughts=3) == found
    fewer = likelihoods(model, config, given[:2], thoughts=3)  # company changes nothing
    assert [e.logprob for e in fewer] == pytest.approx([e.logprob for e in found[:2]], abs=1e-3)


def test_a_prompt_longer_than_the_runs_contexts_is_whole(
    model: LanguageModel, config: Config
) -> None:
    """Few-shot prompts are as long as the model sees, whatever it was trained on."""
    text, answer = choices()[0]
    long = text * 8
    assert config.data.context_tokens < len(long) < model.max_span - 20
    plain = load_model(model.spec).hf
    plain.set_attn_implementation("sdpa")
    cuts = Cuts()
    [found] = likelihoods(model, config, [(long, answer)], thoughts=0, cuts=cuts)
    assert found.logprob == pytest.approx(plainly(plain, [*long], answer)[0], abs=1e-3)
    assert cuts.cut == 0
    assert cuts.told("m") == ""


def test_a_long_text_loses_its_beginning(model: LanguageModel, config: Config) -> None:
    text, answer = choices()[0]
    long = text * 40
    assert len(long) > model.max_span > config.data.context_tokens
    for thoughts in (0, 2):
        room = model.max_span - len(answer) - (config.thought.thought_tokens + 2) * bool(thoughts)
        cuts = Cuts()
        likelihoods(model, config, [(long, answer), (text, answer)], thoughts=thoughts, cuts=cuts)
        assert (cuts.prompts, cuts.cut, cuts.longest) == (2, 1, len(long))
        assert "1 of 2 prompts" in cuts.told("m")
        cut = likelihoods(model, config, [(long[-room:], answer)], thoughts=thoughts)
        assert likelihoods(model, config, [(long, answer)], thoughts=thoughts) == cut
        # Alike for all its answers: the longest of them says how much is lost.
        both = likelihoods(model, config, [(long, answer[:1]), (long, answer)], thoughts=thoughts)
        shorter = likelihoods(model, config, [(long[-room:], answer[:1])], thoughts=thoughts)
        assert both[0].logprob == pytest.approx(shorter[0].logprob, abs=1e-3)


def test_without_the_harness_the_extra_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'rntp\[eval\]'"):
        evaluate_tasks(tmp_path, ["x"], step=None, limit=None, folder=None, say=lambda text: None)
