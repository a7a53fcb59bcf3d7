"""The benches: what they time, and that they refuse to time what computes something else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rntp import cli
from rntp.bench import peers
from rntp.bench.agreement import relative_difference
from rntp.bench.clock import interleaved
from rntp.bench.command import check, table
from rntp.bench.job import Job
from rntp.bench.run import run, step_work
from rntp.bench.sizes import Sizes
from rntp.bench.unshared import Unshared
from rntp.errors import ConfigError
from rntp.model import LanguageModel, cast_parameters, load_model
from rntp.training.estimate import Shape

SIZES = Sizes(context=40, positions=2, thoughts=3, budget=4, horizon=3, docs=2)


@pytest.fixture(scope="module")
def model(model_folders: dict[str, Path]) -> LanguageModel:
    return load_model(str(model_folders["llama"]))


def test_providers_take_turns_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    found = interleaved(
        {name: lambda name=name: order.append(name) for name in "abc"}, repeats=2, warm_up=1
    )
    assert "".join(order) == "abcbcacab"
    assert all(len(timing.seconds) == 2 for timing in found.values())
    with pytest.raises(ValueError, match="at least 1"):
        interleaved({}, repeats=0)


def test_relative_difference_in_closed_form() -> None:
    three, four = {"a": torch.tensor([3.0])}, {"a": torch.tensor([4.0])}
    assert relative_difference(three, four) == pytest.approx(0.25)
    assert relative_difference({}, four) == 1.0  # a gradient that is missing


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_tree_and_unshared_loop_have_one_loss_and_one_gradient(
    model: LanguageModel, weight: float
) -> None:
    job = Job(model, SIZES, weight)
    rollouts = job.sample()
    assert len(rollouts) == SIZES.docs
    found = run("tree", model, SIZES, repeats=1, continuation_weight=weight)
    assert found["agreement"]["rntp"] < 1e-4
    facts = found["facts"]
    assert (facts["tokens with gradients"] == facts["tokens in the tree"]) == (weight > 0)
    assert facts["rows with gradients"] == facts["sampled tokens"] + (
        SIZES.branches * SIZES.horizon if weight else 0
    )
    assert set(found["providers"]) == {"rntp", "unshared loop (transformers)"}
    drawn = sum(len(t.sampled_ids) for r in rollouts for g in r.thoughts for t in g)
    assert found["facts"]["sampled tokens"] == drawn
    assert found["facts"]["token ratio"] > 1
    assert "reference" in table({**found, "command": ""})


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_behind_a_window_too(model: LanguageModel, weight: float, window: int) -> None:
    sizes = replace(SIZES, window=window)
    check(sizes, 1)
    found = run("tree", model, sizes, repeats=1, continuation_weight=weight)
    assert found["agreement"]["rntp"] < 1e-4
    facts = found["facts"]
    assert (facts["tokens with gradients"] == facts["tokens in the tree"]) == (weight > 0)
    predicted = (sizes.branches + sizes.docs * sizes.positions) * sizes.horizon
    assert facts["rows with gradients"] == facts["sampled tokens"] + predicted * (weight > 0)
    job = Job(model, sizes)
    assert min(job.positions) > window
    assert peers.steps(job)[0] == {}
    whole = run("tree", model, SIZES, repeats=1, continuation_weight=weight)
    readings = sizes.branches * (1 + 1 + window) + sizes.docs * sizes.positions * (1 + window)
    assert facts["tokens in the tree"] > whole["facts"]["tokens in the tree"] + readings / 2
    with pytest.raises(ConfigError, match="--window"):
        check(replace(SIZES, window=40), 1)


def test_a_trainer_without_a_term_on_continuations_is_not_compared_with_one(
    model: LanguageModel,
) -> None:
    found, skipped = peers.steps(Job(model, SIZES, 0.1))
    assert not found
    assert set(skipped) == {"TRL GRPOTrainer"}


def test_a_provider_that_computes_something_else_gets_no_time(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Job.backward

    def doubled(job: Job, rollouts: list) -> float:
        loss = honest(job, rollouts)
        for parameter in job.model.hf.parameters():
            if parameter.grad is not None:
                parameter.grad *= 2
        return loss

    monkeypatch.setattr(Job, "backward", doubled)
    with pytest.raises(ConfigError, match="do not compute the same"):
        run("tree", model, SIZES, repeats=1)


def test_generate_draws_as_many_tokens_and_leaves_the_model_as_it_was(
    model: LanguageModel,
) -> None:
    job = Job(model, SIZES)
    before = job.backward(job.sample())
    assert Unshared(job).sample().shape == (SIZES.branches, SIZES.budget)
    assert job.backward(job.sample()) == before
    model.hf.zero_grad(set_to_none=True)


def test_work_of_a_step_in_closed_form() -> None:
    shape = Shape(parameters=0, trunk=10, hidden=2, intermediate=0, layers=1, vocabulary=5)
    sizes = Sizes(context=7, positions=1, thoughts=2, budget=3, horizon=4)
    facts = {"tokens in the tree": 100, "tokens with gradients": 60, "rows with gradients": 6}
    sampling = (7 + 2 * 3) * (20 + 20)
    forward = 100 * 20 + (2 * 7 + 4) * 20
    assert step_work(shape, sizes, facts) == sampling + forward + 2 * (60 * 20 + 6 * 20)


@pytest.mark.parametrize(
    ("sizes", "repeats", "warm_up", "message"),
    [
        (Sizes(budget=0), 1, 1, "--budget must be at least 1"),
        (Sizes(thoughts=1), 1, 1, "no advantage"),
        (Sizes(context=16), 1, 1, "no room"),
        (Sizes(), 0, 1, "--repeats"),
        (Sizes(), 1, -1, "--warm-up"),
    ],
)
def test_sizes_that_cannot_be_say_what_to_change(
    sizes: Sizes, repeats: int, warm_up: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(sizes, repeats, warm_up)


def test_the_command_prints_and_keeps_the_same_numbers(
    model_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "head", "--model", str(model_folders["llama"]), "--dtype", "float32"]
    sizes = ["--context", "40", "--positions", "2", "--thoughts", "2", "--repeats", "1"]
    cli.main([*arguments, *sizes, "--out", str(tmp_path), "--json"])
    printed = json.loads(capsys.readouterr().out)[0]
    assert printed == json.loads((tmp_path / "head.json").read_text())
    assert printed["agreement"]["rntp"] < 1e-4
    assert printed["facts"]["rows"] == 4 * (24 + 16)


def test_bfloat16_is_measured_against_the_exact_gradients(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run("tree", model, SIZES, dtype=torch.bfloat16, repeats=1)
    assert found["dtype"] == "bfloat16"
    assert found["agreement"]["rntp"] < 1e-4  # in float32
    # Rounding is there, and no worse with a tree than without.
    own, usual = (found["rounding"][name] for name in ("rntp", "unshared loop (transformers)"))
    assert 1e-4 < own < 2 * usual < 0.2

    honest = Job.backward

    def rough(job: Job, rollouts: list) -> float:
        loss = honest(job, rollouts)
        for parameter in job.model.hf.parameters():
            if parameter.grad is not None and parameter.dtype == torch.bfloat16:
                parameter.grad *= 1.2
        return loss

    monkeypatch.setattr(Job, "backward", rough)
    with pytest.raises(ConfigError, match="in this type the gradients"):
        run("tree", model, SIZES, dtype=torch.bfloat16, repeats=1)
    cast_parameters(model.hf, torch.float32)


def test_what_the_sampler_notes_is_what_a_scoring_forward_finds(model: LanguageModel) -> None:
    assert run("rollout", model, SIZES, repeats=1)["agreement"]["rntp"] < 1e-5


def test_a_peer_that_fails_is_a_row_with_its_reason(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, or later: what was measured of the others stays."""
    calls = []

    def late() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("pyarrow is too new\nand much more")

    found = {"TRL late": late, "TRL well": lambda: None}
    monkeypatch.setattr(peers, "steps", lambda job: (found, {"TRL early": "ImportError: no"}))
    result = run("step", model, SIZES, repeats=2)
    assert result["skipped"] == {
        "TRL early": "ImportError: no",
        "TRL late": "RuntimeError: pyarrow is too new",
    }
    assert set(result["providers"]) == {"rntp", "unshared loop (transformers)", "TRL well"}
    assert result["providers"]["rntp"]["peak_gb"] > 0.05
    shown = table({**result, "command": ""})
    assert "not measured: TRL late: RuntimeError: pyarrow is too new" in shown


def test_peers_are_picked(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"TRL GRPOTrainer 1": lambda: None}
    monkeypatch.setattr(peers, "steps", lambda job: (found, {}))
    alone = run("step", model, SIZES, repeats=1, chosen=["none"])
    assert set(alone["providers"]) == {"rntp"}
    assert 0 < alone["agreement"]["rntp"] < 1e-3  # compared all the same
    trl = run("step", model, SIZES, repeats=1, chosen=["trl"])
    assert set(trl["providers"]) == {"rntp", "TRL GRPOTrainer 1"}


def test_own_failures_end_the_bench(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> float:
        raise RuntimeError("our own")

    monkeypatch.setattr(Job, "step", fail)
    with pytest.raises(RuntimeError, match="our own"):
        run("step", model, SIZES, repeats=1)


def test_json_stands_alone_whatever_a_peer_prints(
    model_folders: dict[str, Path], capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    import os

    def chatty() -> None:
        print("a progress bar")
        os.write(1, b"from below Python\n")

    monkeypatch.setattr(peers, "steps", lambda job: ({"TRL": chatty}, {}))
    sizes = ["--context", "40", "--positions", "2", "--thoughts", "2", "--budget", "3"]
    more = ["--horizon", "3", "--repeats", "1", "--dtype", "float32", "--peers", "trl"]
    cli.main(["bench", "step", "--model", str(model_folders["llama"]), *sizes, *more, "--json"])
    out, err = capfd.readouterr()
    [result] = json.loads(out)
    assert set(result["providers"]) == {"rntp", "TRL"}
    assert "a progress bar" in err
    assert "from below Python" in err


def test_sizes_by_name() -> None:
    from rntp.bench.sizes import NAMED

    assert NAMED["L256"] == Sizes()
    large = NAMED["L2048"]
    assert (large.context, large.positions, large.thoughts) == (2048, 16, 8)
    assert (large.budget, large.horizon) == (128, 32)
    for sizes in NAMED.values():
        check(sizes, 1)
