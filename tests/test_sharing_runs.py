"""Whole runs without sharing: the tree's run for a Llama, and hybrids that resume and ship."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import same_shards, tiny_run, tiny_tokenizer
from many_ranks import run_ranks, values
from plain_models import plain_model, save_plain
from test_ranks import fit as fit_on_ranks
from test_ranks import same_tensors, train
from test_trainer import comparable, fit
from transformers import AutoModelForCausalLM

from rntp import cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation import evaluate_target
from rntp.evaluation.tasks.answers import Question, Writing, answers
from rntp.evaluation.tasks.choices import likelihoods
from rntp.model import load_model
from rntp.model.opening import open_model
from rntp.model.tokenizer import decode, encode
from rntp.report import build_report
from rntp.run.export import export
from rntp.run.log import read_metrics, read_rollouts
from rntp.trainer import Trainer
from rntp.training.estimate import Shape, Tokens, peak_memory, step_flop

pytestmark = pytest.mark.slow

FLOAT64 = ["model.dtype=float64", "run.steps=2"]
# What depends on how the numbers come about: rounding between sampler and trainer, and costs.
OF_THE_WAY = ("time/", "memory/", "compute/", "kl/sampler", "reward/noise_floor", "data/digest")


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    return tiny_run(model_folders["llama"], corpus, tmp_path / "run")


def hybrid(raw: dict, name: str, folder: Path) -> dict:
    raw["model"]["spec"] = save_plain(name, folder / name)
    return raw


# --- a Llama without sharing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["thought.answer_tokens=3", "reward.scheme=judge_gold"],
        ["objective.continuation_weight=0", "objective.drop_dead_groups=true"],
        ["objective.kl_weight=0.1", "baseline.weights=ema", "objective.kl_reference=ema"],
        ["baseline.weights=frozen", "baseline.use=clip", "placement.policy=entropy"],
        ["placement.interleaved=true", "objective.ntp_weight=0.3"],
        ["reading.window=6", "objective.continuation_weight=0.5"],
        ["reading.window=0", "objective.continuation_weight=0", "objective.drop_dead_groups=true"],
        ["reading.window=5", "placement.interleaved=true", "baseline.weights=frozen"],
        ["reading.window=4", "reading.piece=8", "objective.continuation_weight=0.5"],
        ["objective.algorithm=gspo", "objective.epochs_per_rollout=2"],
        [
            "thought.thoughts_per_position=0",
            "objective.pg_weight=0",
            "objective.continuation_weight=0",
            "objective.ntp_weight=1",
        ],
    ],
    ids=lambda options: options[0],
)
def test_a_llama_trains_the_same_either_way(raw: dict, tmp_path: Path, options: list[str]) -> None:
    """The same thoughts, rewards, losses and weights, in float64."""
    folders = [
        fit(raw, *FLOAT64, *options, f"model.sharing={s}", f"run.dir={tmp_path / s}").config.run.dir
        for s in ("tree", "none")
    ]
    rows, others = (read_metrics(folder) for folder in folders)
    assert len(rows) == 2
    assert [row["data/digest"] for row in rows] == [row["data/digest"] for row in others]
    for row, other in zip(rows, others, strict=True):
        assert list(row) == list(other)
        for key, value in row.items():
            if not key.startswith(OF_THE_WAY):
                # Norms of transformers work in float32, and sums over other shapes round otherwise.
                assert other[key] == pytest.approx(value, rel=2e-5, abs=2e-5), key
    if rows[0]["tokens/thought"]:
        for step in (1, 2):
            for own, other in zip(*(read_rollouts(f, step) for f in folders), strict=True):
                for key in ("thought_ids", "answer", "position", "ordinal"):
                    assert own[key] == other[key]
                assert own["reward"] == pytest.approx(other["reward"], abs=1e-4)
    same_tensors(*folders, 1e-5)
    before, after = (json.loads((f / "eval/step_00000002.json").read_text()) for f in folders)
    assert before["nll/think"] == pytest.approx(after["nll/think"], abs=1e-5)
    assert before["reading"]["nll"] == pytest.approx(after["reading"]["nll"], abs=1e-5)


def test_the_run_says_which_way_and_what_it_costs(raw: dict, tmp_path: Path) -> None:
    for sharing in ("tree", "none", "auto"):
        sets = ("run.steps=1", "model.dtype=float32", f"model.sharing={sharing}")
        fit(raw, *sets, f"run.dir={tmp_path / sharing}")
    told = {s: (tmp_path / s / "log.txt").read_text() for s in ("tree", "none", "auto")}
    tokens = Tokens.of(Config.parse(raw))
    assert "model.sharing" not in told["tree"] + told["auto"]
    assert "model.sharing: none, because it is asked for" in told["none"]
    assert f"about {tokens.plain:.0f} tokens, where a tree has {tokens.tree}" in told["none"]
    assert tokens.plain > 2 * tokens.tree
    kinds = {s: json.loads((tmp_path / s / "manifest.json").read_text())["sharing"] for s in told}
    assert kinds == {"tree": "tree", "none": "none", "auto": "tree"}
    # What is computed is counted; what is trained is the same.
    one, other = (read_metrics(tmp_path / s)[0] for s in ("tree", "none"))
    assert other["compute/tflop"] > 1.5 * one["compute/tflop"]
    assert other["tokens/tree"] == one["tokens/tree"]


def test_sharing_is_no_part_of_what_a_run_is(raw: dict, tmp_path: Path) -> None:
    """A run goes on the other way: numbers are the same up to rounding."""
    assert Config.parse(raw, ["model.sharing=none"]).digest() == Config.parse(raw).digest()
    fit(raw, "model.dtype=float64", "run.steps=1")
    fit(raw, "model.dtype=float64", "run.steps=2", "model.sharing=none")
    fit(raw, "model.dtype=float64", "run.steps=2", f"run.dir={tmp_path / 'whole'}")
    same_tensors(tmp_path / "run", tmp_path / "whole", 1e-5)


# --- models that cannot share ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mamba2", "jamba", "qwen3-next", "bloom"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stopping_and_starting_again_changes_nothing(
    raw: dict, tmp_path: Path, name: str, dtype: str
) -> None:
    raw = hybrid(raw, name, tmp_path)
    raw["thought"]["answer_tokens"] = 2
    raw["checkpoint"]["every_steps"] = 1
    sets = (f"model.dtype={dtype}", "run.steps=3")
    whole = fit(raw, *sets, f"run.dir={tmp_path / 'whole'}").config.run.dir
    metrics = comparable(whole)
    assert all(math.isfinite(v) for row in metrics for v in row.values() if isinstance(v, float))
    assert "model.sharing: none" in (whole / "log.txt").read_text()
    copy = shutil.copytree(whole, tmp_path / "copy")
    for step in (2, 3):
        shutil.rmtree(copy / "checkpoints" / f"step_{step:08d}", ignore_errors=True)
    if not (copy / "checkpoints" / "step_00000001").exists():  # two are kept
        shutil.rmtree(copy)
        fit(raw, f"model.dtype={dtype}", "run.steps=1", f"run.dir={copy}")
    resumed = fit(raw, *sets, f"run.dir={copy}").config.run.dir
    assert comparable(resumed) == metrics
    assert read_rollouts(resumed, 3) == read_rollouts(whole, 3)
    same_shards(*(d / "checkpoints" / "step_00000003" for d in (whole, resumed)))


def test_a_hybrid_is_evaluated_exported_and_reported(raw: dict, tmp_path: Path) -> None:
    raw = hybrid(raw, "qwen3-next", tmp_path)
    said: list[str] = []
    folder = fit(raw, "run.steps=1", "model.dtype=float32").config.run.dir
    result = evaluate_target(folder, say=said.append)
    assert any("model.sharing: none" in text for text in said)
    there = json.loads((folder / "eval" / "step_00000001.json").read_text())
    for key in ("nll/no_think", "nll/think", "gain/mean"):
        assert result[key] == pytest.approx(there[key], abs=1e-6)
    out = export(folder, tmp_path / "out", say=said.append)
    ids = torch.arange(3, 30)[None]
    trained = load_model(str(out))
    assert not trained.shares
    own = AutoModelForCausalLM.from_pretrained(out).eval()(ids, use_cache=False).logits
    start = plain_model("qwen3-next")(ids, use_cache=False).logits
    assert float((own[..., :318] - start[..., :318]).detach().abs().max()) > 1e-4  # it has learnt
    page = build_report([folder], tmp_path / "report.html").read_text()
    assert "sharing: auto" in page


def test_tasks_of_a_hybrid_are_its_own_numbers(raw: dict, tmp_path: Path) -> None:
    raw = hybrid(raw, "qwen3-next", tmp_path)
    config = Config.parse(raw, ["model.dtype=float32", "rollout.docs_per_batch=2"])
    model, tokenizer = open_model(config), tiny_tokenizer()
    texts = ["The quick brown fox", "A model reads a page, thinks", "The dog does not mind"]
    given = [tuple(encode(tokenizer, text).tolist()) for text in texts]
    assert len({len(ids) for ids in given}) > 1

    def next_ids(ids: tuple[int, ...], most: int) -> list[int]:
        found: list[int] = []
        while len(found) < most:
            whole = torch.tensor([[*ids, *found]])
            with torch.no_grad():
                found.append(int(model.hf(whole, use_cache=False).logits[0, -1].argmax()))
            if found[-1] == 0:
                return found[:-1]
        return found

    questions = [Question(ids, Writing(most_tokens=7)) for ids in given]
    found = answers(model, config, questions, think=False)
    assert found == [decode(tokenizer, torch.tensor(next_ids(ids, 7))) for ids in given]
    assert len(answers(model, config, questions, think=True)) == 3
    pairs = [(ids, (5, 9, 30)) for ids in given]
    for (text, answer), each in zip(
        pairs, likelihoods(model, config, pairs, thoughts=0), strict=True
    ):
        with torch.no_grad():
            logits = model.hf(torch.tensor([[*text, *answer]]), use_cache=False).logits[0]
        rows = logits.log_softmax(-1)[len(text) - 1 : -1]
        wanted = float(rows.gather(1, torch.tensor(answer)[:, None]).sum())
        assert each.logprob == pytest.approx(wanted, abs=1e-3)
    assert len(likelihoods(model, config, pairs, thoughts=2)) == 3


@pytest.mark.parametrize("name", ["qwen3-next", "mamba"])
def test_layers_that_compute_again_give_the_same(raw: dict, tmp_path: Path, name: str) -> None:
    raw = hybrid(raw, name, tmp_path)
    sets = ["run.steps=2", "model.dtype=float32"]
    sets += ["objective.router_weight=0.1"] if name == "qwen3-next" else []
    for on in ("true", "false"):
        fit(raw, *sets, f"parallel.activation_checkpointing={on}", f"run.dir={tmp_path / on}")
    same_tensors(tmp_path / "true", tmp_path / "false", 1e-6)


@pytest.mark.parametrize(("name", "router_weight"), [("lfm2", 0), ("mixtral", 0.3)])
def test_two_ranks_train_the_same_run(
    raw: dict, tmp_path: Path, name: str, router_weight: float
) -> None:
    """Ranks have other numbers of sequences, and run as many forwards."""
    raw = hybrid(raw, name, tmp_path)
    raw["run"]["steps"] = 2
    sets = ["model.dtype=float64", "objective.ntp_weight=0.2", "model.sharing=none"]
    sets += [f"objective.router_weight={router_weight}"]
    fit_on_ranks(raw, tmp_path / "one", sets)
    there = [*sets, f"run.dir={tmp_path / 'two'}", "data.docs_per_step=5"]
    values(run_ranks(2, tmp_path / "ranks", train, raw, there))
    rows, others = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for row, other in zip(rows, others, strict=True):
        for key, value in row.items():
            if not key.startswith(OF_THE_WAY):
                assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    same_tensors(tmp_path / "one", tmp_path / "two", 1e-5)


# --- experts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "qwen3-next"])
def test_experts_are_watched_and_balanced(raw: dict, tmp_path: Path, name: str) -> None:
    raw = hybrid(raw, name, tmp_path)
    sets = ["model.dtype=float64", "run.steps=2", "objective.router_weight=0.5"]
    ways = ("tree", "none") if name == "mixtral" else ("auto",)
    found = {}
    for sharing in ways:
        for tokens in (16, 100000):
            folder = tmp_path / f"{sharing}{tokens}"
            cut = f"parallel.tokens_per_microbatch={tokens}"
            fit(raw, *sets, cut, f"model.sharing={sharing}", f"run.dir={folder}")
            found[sharing, tokens] = read_metrics(folder)
    first, *rest = found.values()
    for row in first:
        assert 1 <= row["moe/load_max"] <= 4
        assert 0 <= row["moe/idle_frac"] < 1
        assert 0 < row["moe/entropy"] <= math.log(4)
        assert row["loss/router"] > 1.99
    for rows in rest:
        for row, other in zip(first, rows, strict=True):
            for key in ("moe/load_max", "moe/entropy", "loss/router", "loss/total", "grad_norm"):
                assert other[key] == pytest.approx(row[key], rel=1e-4), key
    # Watched in any case, computed only where it is asked for.
    fit(raw, "run.steps=1", f"run.dir={tmp_path / 'off'}", "evaluation.docs=0")
    [row] = read_metrics(tmp_path / "off")
    assert "moe/load_max" in row
    assert "loss/router" not in row


def test_balancing_goes_without_continuations_and_several_epochs(raw: dict, tmp_path: Path) -> None:
    raw = hybrid(raw, "mixtral", tmp_path)
    sets = ["objective.router_weight=0.1", "objective.continuation_weight=0", "run.steps=2"]
    more = ["objective.algorithm=cispo", "objective.epochs_per_rollout=2"]
    more += ["objective.drop_dead_groups=true", "reward.scheme=exact_prefix"]
    for row in read_metrics(fit(raw, *sets, *more).config.run.dir):
        assert math.isfinite(row["loss/total"])
        assert row["loss/router"] > 1.9
        assert not row["skipped"]


def test_reading_alone_balances_too(raw: dict, tmp_path: Path) -> None:
    raw = hybrid(raw, "mixtral", tmp_path)
    sets = ["thought.thoughts_per_position=0", "objective.pg_weight=0", "run.steps=1"]
    sets += ["objective.continuation_weight=0", "objective.router_weight=0.1"]
    [row] = read_metrics(fit(raw, *sets).config.run.dir)
    assert row["loss/router"] > 1.9


def test_balancing_needs_experts(raw: dict) -> None:
    with pytest.raises(ConfigError, match=r"objective\.router_weight 0\.1 balances experts"):
        open_model(Config.parse(raw, ["objective.router_weight=0.1"]))


# --- refusals and estimates -----------------------------------------------------------------------


def test_tree_is_refused_before_anything_is_written(raw: dict, tmp_path: Path) -> None:
    raw = hybrid(raw, "mamba", tmp_path)
    with pytest.raises(ConfigError, match=r"MambaForCausalLM\) cannot run token trees"):
        Trainer(Config.parse(raw, ["model.sharing=tree"]))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"model\.sharing.*'auto', 'tree' or 'none'"):
        Config.parse(raw, ["model.sharing=forest"])


def test_a_model_that_does_not_compute_in_its_type_is_refused(raw: dict, tmp_path: Path) -> None:
    """Such as one with buffers of float32 in a model of bfloat16."""
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    config = OpenAIGPTConfig(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    model = OpenAIGPTLMHeadModel(config)
    model.save_pretrained(tmp_path / "gpt")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt")
    raw["model"]["spec"] = str(tmp_path / "gpt")
    with pytest.raises(ConfigError, match=r"OpenAIGPTLMHeadModel.*set model\.dtype to float32"):
        Trainer(Config.parse(raw))
    assert not (tmp_path / "run").exists()
    fit(raw, "run.steps=1", "model.dtype=float32")


def test_a_longer_span_than_the_switch_is_refused(raw: dict, tmp_path: Path) -> None:
    from conftest import tiny_model

    model = tiny_model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model.config.max_position_embeddings = 50
    model.save_pretrained(tmp_path / "dynamic")
    tiny_tokenizer().save_pretrained(tmp_path / "dynamic")
    raw["model"]["spec"] = str(tmp_path / "dynamic")
    with pytest.raises(ConfigError, match=r"can reach 55 positions, and .* sees 50"):
        open_model(Config.parse(raw, ["model.sharing=none"]))
    open_model(Config.parse(raw, ["model.sharing=none", "data.context_tokens=40"]))


def test_dry_runs_know_of_it(raw: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dry(name: str, sharing: str) -> tuple[dict, str]:
        raw["model"] |= {"spec": str(tmp_path / name), "sharing": sharing}
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(raw))
        cli.main(["train", str(path), "--dry-run", "--json"])
        out = capsys.readouterr()
        return json.loads(out.out), out.err

    shutil.copytree(raw["model"]["spec"], tmp_path / "llama")
    save_plain("mamba", tmp_path / "mamba")
    save_plain("qwen3-next", tmp_path / "qwen3-next")
    tree, told = dry("llama", "auto")
    assert "model.sharing" not in told
    assert tree == {**dry("llama", "tree")[0], **{k: v for k, v in tree.items() if "s" in k}}
    none, _ = dry("llama", "none")
    assert none["TFLOP per step"] > 1.5 * tree["TFLOP per step"]
    # Larger contexts are computed again in pieces: a microbatch stays what it is.
    assert none["peak memory, GB"] == pytest.approx(tree["peak memory, GB"])
    assert none["tokens per step, model.sharing none"] == Tokens.of(Config.parse(raw)).plain
    for name in ("mamba", "qwen3-next"):
        sizes, told = dry(name, "auto")
        assert "will hardly run token trees" in told
        assert sizes["TFLOP per step"] == pytest.approx(dry(name, "none")[0]["TFLOP per step"])
    assert not (tmp_path / "run").exists()


CHAIN = ["reading.window=4", "reading.piece=8"]


@pytest.mark.parametrize("options", [[], ["reading.window=6"], CHAIN], ids=str)
def test_full_lengths_are_what_a_run_of_full_lengths_computes(
    raw: dict, options: list[str]
) -> None:
    """The estimate's tokens, against those of a run whose thoughts never close."""
    raw["data"]["docs_per_step"] = 8
    sets = ["run.steps=1", "evaluation.docs=0", "thought.temperature=0.01", *options]
    trainer = Trainer(Config.parse(raw, [*sets, "model.sharing=none", "model.dtype=float32"]))
    trainer.fit()
    [row] = read_metrics(trainer.config.run.dir)
    estimated = step_flop(trainer.config, trainer.shape, Tokens.of(trainer.config)) / 1e12
    # Positions are drawn, and the estimate takes the middle of a page.
    assert row["compute/tflop"] == pytest.approx(estimated, rel=0.3)
    wide = Config.parse(raw, ["parallel.tokens_per_microbatch=100000"])
    shared, alone = (Shape.of(trainer.model.hf, shares=s) for s in (True, False))
    assert peak_memory(wide, alone) > peak_memory(wide, shared)
    if options != CHAIN:  # whose links fit into a microbatch either way
        assert peak_memory(trainer.config, alone, ranks=2) > peak_memory(trainer.config, shared, 2)
