"""The engine of vLLM against a stand-in that answers with transformers' own model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model, tiny_run, tiny_tokenizer
from transformers import AutoModelForCausalLM
from vllm_scripted import Scripted, ThreadChild, starting

from rntp.config import Config
from rntp.errors import ConfigError, Preempted
from rntp.model import LanguageModel, load_model
from rntp.model.thought_tree import ThoughtTree
from rntp.rng import hashed
from rntp.rollout.carried import open_chain
from rntp.rollout.interleaved import InterleavedEngine, open_training_engine
from rntp.rollout.vllm.child import Frame
from rntp.rollout.vllm.engine import VllmEngine, running, vllm_of
from rntp.rollout.vllm.weights import write_weights
from rntp.types import Context, NextTokenStats, Rollout

HORIZON = 4


def context(ordinal: int, length: int = 24) -> Context:
    generator = torch.Generator().manual_seed(100 + ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 318, (length,), generator=generator))


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (3, 10, len(context) - 4)


def config_of(model_folders: dict[str, Path], tmp_path: Path, *overrides: str) -> Config:
    raw = tiny_run(model_folders["llama"], tmp_path, tmp_path / "run")
    raw["model"]["dtype"] = "float32"
    return Config.parse(raw, ["rollout.engine=vllm", *overrides])


@pytest.fixture
def config(model_folders: dict[str, Path], tmp_path: Path) -> Config:
    return config_of(model_folders, tmp_path)


@pytest.fixture
def model(model_folders: dict[str, Path]) -> LanguageModel:
    return load_model(str(model_folders["llama"]))


def opened(model: LanguageModel, config: Config, scripted: Scripted, **more: Any) -> VllmEngine:
    settings = {"thoughts": 3, "start": starting(scripted), **more}
    engine = VllmEngine(model, config, **settings)
    engine.open(config.run.dir / "vllm.txt")
    return engine


@torch.no_grad()
def distances(model: LanguageModel, rollouts: list[Rollout], temperature: float) -> torch.Tensor:
    """Between the log-probs of the trainer's forward and those of the sampler."""
    tree = ThoughtTree.build(
        rollouts,
        think_open_id=model.think_open_id,
        think_close_id=model.think_close_id,
        horizon=HORIZON,
    )
    rows = tree.tree.hidden(model)[tree.thought_rows]
    trainer, _, _ = model.logprob(rows, tree.thought_targets, temperature)
    drawn = [t.drawn_logprobs for r in rollouts for group in r.thoughts for t in group]
    return (trainer - torch.cat(drawn)).abs()


def test_every_thought_stands_where_it_was_drawn(
    model_folders: dict[str, Path], model: LanguageModel, tmp_path: Path
) -> None:
    """Its log-probs are those of the trainer's forward at its place, and of no other place."""
    config = config_of(model_folders, tmp_path, "thought.temperature=0.8")
    scripted = Scripted()
    engine = opened(model, config, scripted, answer_tokens=3)
    contexts = [context(0), context(1, 17)]
    rollouts = engine.sample(contexts, place, policy_version=7)
    engine.close()
    assert [r.positions for r in rollouts] == [(3, 10, 20), (3, 10, 13)]
    assert [len(group) for r in rollouts for group in r.thoughts] == [3] * 6
    assert {r.policy_version for r in rollouts} == {7}
    assert distances(model, rollouts, 0.8).max() < 1e-5
    swapped = [replace(r, thoughts=r.thoughts[::-1]) for r in rollouts]
    assert distances(model, swapped, 0.8).mean() > 0.1
    thoughts = [t for r in rollouts for group in r.thoughts for t in group]
    assert all(1 <= len(t.sampled_ids) <= 5 and 1 <= len(t.answer_ids) <= 3 for t in thoughts)
    assert len({tuple(t.sampled_ids.tolist()) for t in thoughts}) == len(thoughts)
    with torch.no_grad():  # what the rollouts say of the page without a thought
        hf = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
        hf.resize_token_embeddings(320, mean_resizing=False)
        hf.load_state_dict(model.hf.state_dict())
        ids = contexts[0].token_ids
        logp = hf(ids[None]).logits[0].log_softmax(-1)
    expected = torch.stack([-logp[p - 1, ids[p]] for p in (3, 10, 20)])
    torch.testing.assert_close(rollouts[0].nll, expected, rtol=1e-4, atol=1e-4)


def test_a_seed_for_every_thought(
    model_folders: dict[str, Path], model: LanguageModel, tmp_path: Path
) -> None:
    def seeds(*overrides: str, contexts: tuple[int, ...] = (0, 1, 2)) -> list[int]:
        config, scripted = config_of(model_folders, tmp_path, *overrides), Scripted()
        engine = opened(model, config, scripted, answer_tokens=1)
        engine.sample([context(n) for n in contexts], place)
        engine.close()
        return [int(s) for frame in scripted.of("sample") for s in frame.arrays["seed"]]

    found = seeds()
    assert len(found) == 2 * 3 * 3 * 3  # thoughts and their answers
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 1 << 63 for seed in found)
    assert seeds() == found
    assert set(seeds("run.seed=4")) & set(found) == set()
    assert set(seeds(contexts=(5, 6))) & set(found) == set()
    # One batch or many: a thought's seed is its own.
    assert set(seeds("rollout.docs_per_batch=1")) == set(found)
    assert seeds(contexts=(1,)) == [int(s) for s in (found[9:18] + found[36:45])]
    for part in (hashed(3, "a", 1 << 40, 2, 3), hashed(3, "a", 1, 2, 3), hashed(3, "b", 1, 2, 3)):
        assert part.dtype == torch.int64
    index = torch.arange(200_000)
    assert len(hashed(0, "thought", index).unique()) == len(index)


def test_a_thought_ends_at_its_marker_or_its_budget(config: Config, model: LanguageModel) -> None:
    scripted = Scripted()
    engine = opened(model, config, scripted)

    def drawn(frame: Frame) -> Frame:
        lengths = [1, 3, 5] * (len(frame.arrays["seed"]) // 3)
        ids = [[model.think_close_id], [7, 8, model.think_close_id], [1, 2, 3, 4, 5]]
        flat = [token for n in range(len(lengths)) for token in ids[n % 3]]
        arrays = {"length": lengths, "ids": flat, "logprobs": [-0.5] * len(flat)}
        return Frame("sampled", {}, {k: torch.tensor(v).numpy() for k, v in arrays.items()})

    scripted._sample = drawn  # type: ignore[method-assign]
    (rollout,) = engine.sample([context(0)], place)
    engine.close()
    for group in rollout.thoughts:
        assert [t.closed for t in group] == [True, True, False]
        assert [t.num_tokens for t in group] == [0, 2, 5]
        assert [t.content.tolist() for t in group] == [[], [7, 8], [1, 2, 3, 4, 5]]


def test_weights_are_loaded_when_they_have_changed(config: Config, model: LanguageModel) -> None:
    scripted, check = Scripted(), lambda: None
    engine = opened(model, config, scripted)
    assert engine.metrics()["sampler/canary"] < 1e-5
    engine.sample([context(0)], place, check, 0)
    engine.sample([context(0)], place, check, 0)
    assert len(scripted.of("load")) == 0
    engine.sample([context(0)], place, check, 1)
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight.mul_(1.3)
    engine.sample([context(0)], place, check, 1)  # the same number again, after a roll-back
    assert len(scripted.of("load")) == 2
    assert engine.metrics()["sampler/canary"] < 1e-5
    salts = [frame.facts["salt"] for frame in scripted.of("sample")]
    assert salts == ["v0.1", "v0.1", "v1.2", "v1.3"]
    folders = [Path(frame.facts["folder"]) for frame in scripted.of("load")]
    assert [folder.exists() for folder in folders] == [False, True]
    engine.close()
    assert not folders[1].exists()


def test_wrong_weights_sample_nothing(config: Config, model: LanguageModel) -> None:
    """Planted: what is written for vLLM is a hundredth off in one matrix, from the second on."""
    scripted, written = Scripted(), []

    def write(model: LanguageModel, folder: Path) -> None:
        weight = model.hf.model.layers[0].self_attn.o_proj.weight.data
        kept = weight.clone()
        if written:
            weight.mul_(1.01)
        written.append(folder)
        write_weights(model, folder)
        weight.copy_(kept)

    engine = opened(model, config, scripted, write=write)
    engine.sample([context(0)], place, policy_version=0)
    sampled = len(scripted.of("sample"))
    with pytest.raises(ConfigError, match=r"weights of version 1: .* nats a token .*float32"):
        engine.sample([context(0)], place, policy_version=1)
    assert len(scripted.of("sample")) == sampled == 1
    assert len(written) == 3  # one more try before it is given up
    assert not any(folder.exists() for folder in written)


def test_a_load_that_changes_nothing_is_told_by_that(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """In bfloat16 a small step lies within the rounding; an engine that keeps the weights it began
    with gives the log-probs that it gave before."""
    config = config_of(model_folders, tmp_path, "model.dtype=bfloat16")
    model = load_model(str(model_folders["llama"]))
    model.hf.to(torch.bfloat16)
    scripted = Scripted()
    engine = opened(model, config, scripted)
    assert engine.metrics()["sampler/canary"] < 0.15
    scripted._load = lambda frame: Frame("loaded")  # type: ignore[method-assign]
    with torch.no_grad():
        model.hf.model.layers[0].mlp.up_proj.weight.mul_(1.008)
    with pytest.raises(ConfigError, match="those of earlier weights, to the bit"):
        engine.sample([context(0)], place, policy_version=1)
    assert engine.distance < 0.15  # the distance alone would have let it pass
    assert len(scripted.of("sample")) == 0


def test_a_child_that_gives_nonsense_or_nothing(config: Config, model: LanguageModel) -> None:
    scripted = Scripted()
    engine = opened(model, config, scripted)
    real = scripted._sample

    def nonsense(frame: Frame) -> Frame:
        found = real(frame)
        return replace(found, arrays={**found.arrays, "logprobs": found.arrays["logprobs"] + 99})

    scripted._sample = nonsense  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"thoughts that are none .* rollout.engine"):
        engine.sample([context(0)], place)

    def fails(frame: Frame) -> Frame:
        raise ValueError("prompt too long")

    scripted._sample = fails  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"vLLM cannot sample: ValueError: prompt too long"):
        engine.sample([context(0)], place)
    scripted._sample = real  # type: ignore[method-assign]
    assert len(engine.sample([context(0)], place)) == 1  # it starts again
    engine.close()


def test_a_model_that_vllm_does_not_know(config: Config, model: LanguageModel) -> None:
    """It is said at start, and nothing stays behind."""
    scripted, folders, children = Scripted(), [], []

    def refuses(frame: Frame) -> Frame:
        folders.append(Path(frame.facts["model"]))
        raise ValueError("architecture OddForCausalLM is not supported")

    def start(log: Path) -> ThreadChild:
        children.append(ThreadChild(scripted.answer, log))
        return children[-1]

    scripted._open = refuses  # type: ignore[method-assign]
    engine = VllmEngine(model, config, thoughts=3, start=start)
    told = r"vLLM cannot open: ValueError: architecture Odd.* rollout.engine: inprocess"
    with (
        pytest.raises(ConfigError, match=told),
        running(engine, config.run.dir, lambda line: None),
    ):
        pytest.fail("it was to be refused")
    assert [folder.exists() for folder in folders] == [False]
    assert [child.ended for child in children] == [True]


def test_a_stop_request_is_heard_while_the_child_works(
    config: Config, model: LanguageModel
) -> None:
    scripted, children = Scripted(), []

    def start(log: Path) -> ThreadChild:
        children.append(ThreadChild(scripted.answer, log))
        return children[-1]

    engine = opened(model, config, scripted, start=start)
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if len(scripted.of("sample")):
            raise Preempted("stop")

    with pytest.raises(Preempted):
        engine.sample([context(n) for n in range(8)], place, check)
    assert [child.ended for child in children] == [True]
    assert asked >= 2


def test_it_samples_within_other_engines(
    model_folders: dict[str, Path], model: LanguageModel, tmp_path: Path
) -> None:
    """Interleaved thoughts and chains of memories ask it position after position."""
    config = config_of(model_folders, tmp_path, "placement.interleaved=true")
    engine = opened(model, config, Scripted())
    rollouts = InterleavedEngine(engine, model, 0).sample([context(0)], place)
    assert [len(r.context.seen) for r in rollouts] == [0, 1, 2]
    for rollout in rollouts:
        assert distances(model, [rollout], 1.0).max() < 1e-5
    engine.close()
    overrides = ["reading.window=4", "reading.piece=6", "evaluation.controls=[]"]
    config = config_of(model_folders, tmp_path, *overrides)
    engine = opened(model, config, Scripted())
    chain = open_chain(engine, model, config, 2, keeps=True)
    assert [len(r.thoughts[0]) for r in chain.sample([context(0)], place)] == [4, 4]
    assert vllm_of(chain) is engine
    engine.close()
    assert isinstance(vllm_of(open_training_engine(model, config)), VllmEngine)
    plain = config_of(model_folders, tmp_path, "rollout.engine=inprocess")
    assert vllm_of(open_training_engine(model, plain)) is None


def test_it_runs_while_the_context_is_open(config: Config, model: LanguageModel) -> None:
    engine, said = VllmEngine(model, config, thoughts=2, start=starting(Scripted())), []
    with running(engine, config.run.dir, said.append):
        assert engine.sample([context(0)], place)[0].positions == (3, 10, 20)
    assert "vllm 0.32.0" in said[1]
    assert engine._child is None
    with running(object(), config.run.dir, said.append):
        assert len(said) == 2


@pytest.mark.parametrize("architecture", ["llama", "llama-untied"])
def test_rows_that_no_token_has_are_left_out(architecture: str, tmp_path: Path) -> None:
    tiny_model(architecture).save_pretrained(tmp_path / "model")
    tiny_tokenizer(290).save_pretrained(tmp_path / "model")
    model = load_model(str(tmp_path / "model"))
    assert (model.vocabulary, model.head.shape[0]) == (292, 320)
    write_weights(model, tmp_path / "written")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "written")
    assert copy.config.vocab_size == 292
    ids = torch.arange(20)
    with torch.no_grad():
        assert copy(ids[None]).logits.shape == (1, 20, 292)
    own = model.hf.get_input_embeddings().weight[:292]
    torch.testing.assert_close(copy.get_input_embeddings().weight, own)
    torch.testing.assert_close(copy.get_output_embeddings().weight, model.head[:292])
