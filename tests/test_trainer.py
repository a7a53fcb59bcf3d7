"""The loop: it runs, it resumes bit for bit, and it refuses what it cannot do before it writes."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sacrebleu
import torch
import yaml
from conftest import same_shards, tiny_run, write_corpus

from rntp import rewards
from rntp.config import Config
from rntp.errors import CheckpointError, ConfigError, DataError, Diverged, Preempted
from rntp.evaluation import evaluate_target
from rntp.objective.quantities import ForwardOutputs
from rntp.rollout.interleaved import open_training_engine
from rntp.run import folder as run_folder
from rntp.run.checkpoint import committed
from rntp.run.log import read_metrics, read_rollouts
from rntp.trainer import Trainer
from rntp.training.step_memory import StepMemory

CONTRACT = [
    "step",
    "reward/mean",
    "reward/std",
    "reward/log_ratio",
    "reward/logprob",
    "reward/exact_prefix",
    "gain/mean",
    "nll/no_think",
    "nll/think",
    "thought/tokens_mean",
    "thought/closed_frac",
    "group/dead_frac",
    "loss/total",
    "loss/pg",
    "loss/ntp",
    "grad_norm",
    "kl/sampler",
    "entropy/thought",
    "lr",
    "tokens/context",
    "tokens/thought",
    "tokens/tree",
    "tokens/unshared",
    "time/step_s",
    "time/rollout_s",
    "time/forward_s",
    "time/update_s",
    "data/ordinal_first",
    "data/digest",
]


@pytest.fixture
def raw(model_folders: dict[str, Path], corpus: Path, tmp_path: Path) -> dict:
    return tiny_run(model_folders["llama"], corpus, tmp_path / "run")


def fit(raw: dict, *overrides: str, resume: str = "auto") -> Trainer:
    trainer = Trainer(Config.parse(raw, overrides), resume=resume)
    trainer.fit()
    return trainer


def comparable(run_dir: Path) -> list[dict]:
    """The metrics without what depends on the machine's mood."""
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))}
        for row in read_metrics(run_dir)
    ]


def test_a_run_leaves_everything_the_contract_names(raw: dict) -> None:
    trainer = fit(raw)
    folder = trainer.config.run.dir
    metrics = read_metrics(folder)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    for row in metrics:
        assert [key for key in CONTRACT if key not in row] == []
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
        assert row["tokens/thought"] <= 3 * 2 * 3 * 5
        assert row["kl/sampler"] < 1e-3
        gain = row["nll/no_think"] - row["nll/think"]
        assert row["gain/mean"] == pytest.approx(gain, abs=1e-5)
    assert [row["data/ordinal_first"] for row in metrics] == [0, 3, 6, 9]
    assert len({row["data/digest"] for row in metrics}) == 4
    assert metrics[0]["lr"] == pytest.approx(5e-4)
    assert metrics[1]["lr"] == 1e-3

    rows = read_rollouts(folder, 1)
    assert len(rows) == 3 * 2 * 3
    for row in rows:
        assert set(row["rewards"]) == {"log_ratio", "logprob", "exact_prefix"}
        assert len(row["gain_per_token"]) == 4
        assert row["gain"] == pytest.approx(sum(row["gain_per_token"]) / 4)
        discounted = sum(g * 0.9**k for k, g in enumerate(row["gain_per_token"]))
        assert row["rewards"]["log_ratio"] == pytest.approx(discounted, abs=1e-5)
        assert row["policy_version"] == 0
    groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    for group in groups:
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-4)

    assert [step for step, _ in committed(folder / "checkpoints")] == [2, 4]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["config_digest"] == trainer.config.digest()
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["seed"] == 3
    assert {p.name for p in (folder / "eval").iterdir()} == {
        "step_00000000.json",
        "step_00000004.json",
    }
    comparison = trainer.comparison()
    assert comparison["nll/think"]["before"] != comparison["nll/think"]["after"]
    again = evaluate_target(folder, 4, say=lambda text: None)
    saved = json.loads((folder / "eval" / "step_00000004.json").read_text())
    assert again["nll/think"] == saved["nll/think"]
    assert again["deciles"] == saved["deciles"]
    for key in ("step", "seed", "config_digest", "evaluation_digest", "data_digest"):
        assert again[key] == saved[key], key
    assert again["heldout_digest"] == saved["heldout_digest"] is not None
    assert again["step"] == 4


def test_answers_are_sampled_rewarded_and_logged(raw: dict, tmp_path: Path) -> None:
    raw["run"]["steps"] = 2
    plain = fit(raw).config.run.dir
    options = ["thought.answer_tokens=3", "reward.scheme={chrf: 1, answer_exact: 1}"]
    shadows = "reward.shadows=[log_ratio, judge_gold, byte_prefix]"
    folder = fit(raw, *options, shadows, f"run.dir={tmp_path / 'answers'}").config.run.dir
    first, before = read_metrics(folder)[0], read_metrics(plain)[0]
    assert 0 < first["answer/tokens_mean"] <= 3
    assert 0 <= first["answer/ended_frac"] <= 1
    assert not [key for row in read_metrics(plain) for key in row if key.startswith("answer/")]
    drawn = first["tokens/tree"] - before["tokens/tree"]
    assert 18 <= drawn <= 3 * 18
    assert first["tokens/unshared"] > 2 * before["tokens/unshared"] - 18 * 4
    assert first["compute/tflop"] > 1.5 * before["compute/tflop"]  # the judge reads, too
    for key in ("tokens/thought", "gain/mean", "thought/closed_frac", "data/digest"):
        assert first[key] == before[key], key
    assert first["entropy/thought"] == pytest.approx(before["entropy/thought"], rel=1e-3)
    assert first["kl/sampler"] < 1e-3
    assert first["loss/pg"] != before["loss/pg"]

    rows, old_rows = read_rollouts(folder, 1), read_rollouts(plain, 1)
    assert [row["thought_ids"] for row in rows] == [row["thought_ids"] for row in old_rows]
    assert {row["answer"] for row in old_rows} == {""}
    assert len({row["answer"] for row in rows}) > 10
    for row in rows:
        ours = row["rewards"]
        expected = sacrebleu.sentence_chrf(row["answer"], [row["continuation"]]).score / 100
        assert ours["chrf"] == pytest.approx(expected, abs=1e-6)
        assert ours["answer_exact"] in (0, 1)
        assert 0 < ours["judge_gold"] < 1 or not row["answer"]
        assert row["reward"] == pytest.approx(ours["chrf"] + ours["answer_exact"])
    assert sum(row["rewards"]["chrf"] for row in rows) > 0
    # The evaluation is of thoughts: it writes no answers.
    one, other = (
        json.loads((d / "eval" / "step_00000000.json").read_text()) for d in (folder, plain)
    )
    assert one["pages"] == other["pages"]


@pytest.mark.parametrize("continuation_weight", [0.1, 0.0])
def test_every_token_of_a_step_goes_through_the_trunk_once(
    raw: dict, monkeypatch: pytest.MonkeyPatch, continuation_weight: float
) -> None:
    """Besides sampling: one prefill and a token at a time, without gradients."""
    trainer = Trainer(
        Config.parse(
            raw,
            [
                "run.steps=2",
                "evaluation.docs=0",
                "parallel.tokens_per_microbatch=10000",
                f"objective.continuation_weight={continuation_weight}",
            ],
        )
    )
    trunk = trainer.model.hf.base_model
    calls: list[tuple[bool, int]] = []
    forward = trunk.forward

    def counted(*args: object, **kwargs: object) -> object:
        calls.append((torch.is_grad_enabled(), kwargs["input_ids"].shape[1]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(trunk, "forward", counted)
    trainer.fit()
    metrics = read_metrics(trainer.config.run.dir)
    learning = [tokens for with_grad, tokens in calls if with_grad]
    assert learning == [row["tokens/learning"] for row in metrics]
    if continuation_weight:
        assert learning == [row["tokens/tree"] for row in metrics]
    else:  # what the loss does not read comes behind it
        silent = [row["tokens/tree"] - row["tokens/learning"] for row in metrics]
        assert min(silent) > 3 * 2 * 3 * (trainer.config.reward.horizon - 1)
        behind = [n for n, (with_grad, _) in enumerate(calls, start=1) if with_grad]
        assert [calls.pop(n) for n in reversed(behind)] == [(False, n) for n in reversed(silent)]
    sampling = [tokens for with_grad, tokens in calls if not with_grad]
    prefills = [tokens for tokens in sampling if tokens != 3 * 2 * 3]
    assert prefills == [row["tokens/context"] for row in metrics]
    assert len(sampling) <= 2 * (1 + 5)


def test_the_update_raises_the_reward_on_the_same_thoughts(raw: dict) -> None:
    """The policy term alone: thoughts of positive advantage become likelier."""
    trainer = Trainer(
        Config.parse(raw, ["objective.continuation_weight=0", "objective.ntp_weight=0"])
    )
    config = trainer.config
    from rntp.objective.forward import build_tree, forward
    from rntp.objective.rewards_and_advantages import compute_rewards

    contexts = trainer.corpus.train.take(range(3))
    rollouts = open_training_engine(trainer.model, config).sample(contexts, trainer.sampling.place)

    def outputs() -> ForwardOutputs:
        tree = build_tree(trainer.model, rollouts, config.reward.horizon)
        return forward(trainer.model, tree, temperature=1.0)

    tree = build_tree(trainer.model, rollouts, config.reward.horizon)
    before = outputs()
    advantage = compute_rewards(before, tree, rollouts, config).advantage_PG.flatten()[
        tree.thought_index
    ]
    loss = -(advantage * before.thought_logp_M).mean()
    loss.backward()
    trainer.optimizer.step(2, loss_is_finite=True)
    gained = outputs().thought_logp_M.detach() - before.thought_logp_M.detach()
    assert (advantage * gained).sum() > 0
    assert gained[advantage > 0].mean() > gained[advantage < 0].mean()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_stopping_and_starting_again_changes_nothing(raw: dict, tmp_path: Path, dtype: str) -> None:
    whole = fit(raw, f"model.dtype={dtype}", f"run.dir={tmp_path / 'whole'}").config.run.dir
    parts = f"run.dir={tmp_path / 'parts'}"
    for steps in (1, 3, 4):  # 1 and 3 lie between the regular checkpoints
        folder = fit(raw, f"model.dtype={dtype}", parts, f"run.steps={steps}").config.run.dir
    assert comparable(folder) == comparable(whole)
    assert read_rollouts(folder, 4) == read_rollouts(whole, 4)
    one, other = (d / "checkpoints" / "step_00000004" for d in (whole, folder))
    assert same_shards(one, other) == {"weights", "moments", "alarms", "gate"}


def test_other_baseline_weights_reach_the_reward_and_nothing_else(
    raw: dict, tmp_path: Path
) -> None:
    """Subtracted they cancel: the same run but for the logged reward."""
    raw["evaluation"] = {"docs": 0}
    raw["optim"] = {"lr": 1e-2}
    runs = {}
    for weights in ("current", "frozen", "ema"):
        options = [f"baseline.weights={weights}", f"run.dir={tmp_path / weights}"]
        runs[weights] = comparable(fit(raw, *options, "model.dtype=float64").config.run.dir)
    for row, frozen, ema in zip(*runs.values(), strict=True):
        for other in (frozen, ema):
            for key in ("gain/mean", "nll/no_think", "nll/think", "grad_norm", "loss/pg"):
                assert other[key] == pytest.approx(row[key], rel=1e-9), key
            assert other["data/digest"] == row["data/digest"]
        rewarded = [r["reward/mean"] for r in (row, frozen, ema)]
        if row["step"] == 1:
            assert rewarded[1:] == pytest.approx([rewarded[0]] * 2, rel=1e-9)
        elif row["step"] == 2:
            # The start predicts worse by now, so beating it is easier; the average is close to it.
            assert rewarded[1] > rewarded[0] + 0.1
            assert 0 < abs(rewarded[2] - rewarded[1]) < 0.01
        else:
            assert len(set(rewarded)) == 3


def test_a_frozen_judge_parts_from_the_policy(raw: dict, tmp_path: Path) -> None:
    """On the same answers; the judge only logs, so that the runs are the same otherwise."""
    raw["evaluation"] = {"docs": 0}
    raw["optim"] = {"lr": 5e-2}
    options = ["reward.shadows=[judge_gold]", "thought.answer_tokens=2", "run.steps=2"]
    one, other = (
        comparable(
            fit(
                raw, *options, f"reward.judges.itself={j}", f"run.dir={tmp_path / j}"
            ).config.run.dir
        )
        for j in ("policy", "frozen")
    )
    assert one[0] == other[0]
    judged = [rows[1].pop("reward/judge_gold") for rows in (one, other)]
    assert abs(judged[0] - judged[1]) > 1e-3
    assert one[1] == other[1]


def test_a_skipped_step_is_not_followed(raw: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["baseline.weights=ema", "baseline.decay=0.5", "placement.policy=learnability"]
    monkeypatch.setenv("RNTP_FAULT", "gradient#1=nan")
    trainer = Trainer(Config.parse(raw, [*options, "evaluation.docs=0", "run.steps=1"]))
    kept = {name: t.clone() for name, t in trainer.followers.reference.tensors().items()}
    trainer.fit()
    for name, tensor in trainer.followers.reference.tensors().items():
        assert torch.equal(tensor, kept[name])
    assert trainer.followers.record.tensors()["groups"].sum() == 0


def test_labels_are_measured_and_placed_by(raw: dict, tmp_path: Path) -> None:
    raw["evaluation"] = {"docs": 0}
    plain = read_metrics(fit(raw, f"run.dir={tmp_path / 'plain'}").config.run.dir)
    of_labels = ("placement/precision", "placement/recall", "class/")
    assert not [key for row in plain for key in row if key.startswith(of_labels)]
    assert all(row["placement/in_band_frac"] == 1 for row in plain)
    raw["data"]["source"] = str(write_corpus(tmp_path / "labelled", 12, labelled=True))
    rows = {}
    for policy in ("random", "oracle", "by_class"):
        options = [f"placement.policy={policy}", f"run.dir={tmp_path / policy}"]
        rows[policy] = read_metrics(fit(raw, *options).config.run.dir)
        for row in rows[policy]:
            gains = row["class/left_to_think/gain"], row["class/easy/gain"]
            assert min(gains) <= row["gain/mean"] <= max(gains)
    assert all(row["placement/precision"] == 1 for row in rows["oracle"])
    assert all(row["placement/precision"] == 0.5 for row in rows["by_class"])
    mean = sum(row["placement/precision"] for row in rows["random"]) / 4
    assert mean < 0.5
    # Of the 37 eligible positions of each context, 7 or 8 can be helped; 2 are picked.
    assert all(2 / 8 <= row["placement/recall"] <= 2 / 7 for row in rows["oracle"])


def test_an_old_run_folder_goes_on(raw: dict) -> None:
    """Its config has none of the newer fields, whose defaults are what it did, and old names."""
    raw["evaluation"] = {"docs": 0}
    folder = fit(raw, "run.steps=2").config.run.dir
    written = yaml.safe_load((folder / "config.yaml").read_text())
    del written["baseline"]["weights"], written["optim"]["adamw"], written["objective"]["kl"]
    written["baseline"] |= {"weights": "current", "decay": 0.99}
    written["optim"] |= {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "max_skipped_steps": 5}
    written["objective"] |= {"kl_weight": 0.0, "kl_estimator": "k3", "clip_low": 0.2}
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    assert len(read_metrics(fit(raw).config.run.dir)) == 4


def test_several_epochs_over_the_same_thoughts(raw: dict, tmp_path: Path) -> None:
    options = ["objective.algorithm=clipped_ratio", "optim.lr=0.01", "optim.warmup_steps=0"]
    once = fit(raw, *options, f"run.dir={tmp_path / 'once'}")
    plain = fit(raw, *options[1:], f"run.dir={tmp_path / 'plain'}")
    thrice = fit(raw, *options, "objective.epochs_per_rollout=3", f"run.dir={tmp_path / 'thrice'}")
    for row, other in zip(
        comparable(once.config.run.dir), comparable(plain.config.run.dir), strict=True
    ):
        # The surrogates differ in value, not in gradient.
        assert {k for k in row if row[k] != other[k]} <= {"loss/pg", "loss/total"}
    first, *_ = comparable(once.config.run.dir)
    other, second, *_ = comparable(thrice.config.run.dir)
    assert other["reward/mean"] == first["reward/mean"]  # the same thoughts at first
    assert second["reward/mean"] != comparable(once.config.run.dir)[1]["reward/mean"]
    assert sum(row["policy/clip_frac"] for row in comparable(thrice.config.run.dir)) > 0


@pytest.mark.parametrize("dropped", [[1], [2], [1, 2], []])
def test_every_epochs_update_is_told_truly(
    raw: dict, monkeypatch: pytest.MonkeyPatch, dropped: list[int]
) -> None:
    """Which of two updates was dropped, whether the weights moved, and what follows them."""
    raw["evaluation"] = {"docs": 0}
    raw["parallel"]["tokens_per_microbatch"] = 4096  # one microbatch an epoch
    options = ["objective.algorithm=clipped_ratio", "objective.epochs_per_rollout=2"]
    options += ["baseline.weights=ema", "baseline.decay=0.5", "run.steps=1", "optim.lr=0.01"]
    options += ["placement.policy=learnability"]
    if dropped:
        monkeypatch.setenv("RNTP_FAULT", ";".join(f"gradient#{n}=nan" for n in dropped))
    trainer = Trainer(Config.parse(raw, options))
    before = {name: master.detach().clone() for name, master in trainer.optimizer.masters.items()}
    average = {name: t.clone() for name, t in trainer.followers.reference.tensors().items()}
    trainer.fit()
    moved = any(not torch.equal(before[n], m) for n, m in trainer.optimizer.masters.items())
    assert moved == (len(dropped) < 2)
    followed = any(
        not torch.equal(average[n], t) for n, t in trainer.followers.reference.tensors().items()
    )
    assert followed == moved
    assert bool(trainer.followers.record.tensors()["groups"].sum()) == moved
    assert trainer.optimizer.moments()[f"step.{next(iter(before))}"] == 2 - len(dropped)
    folder = trainer.config.run.dir
    [row] = read_metrics(folder)
    assert row["skipped"] == len(dropped)
    assert (row["grad_norm"] is None) == (2 in dropped)
    note = folder / "quarantine" / "step_00000001.json"
    assert note.exists() == bool(dropped)
    if dropped:
        facts = json.loads(note.read_text())
        assert (facts["dropped_updates"], facts["updates"], facts["moved"]) == (dropped, 2, moved)
        assert facts["grad_norm"] is None
        said = (folder / "log.txt").read_text()
        assert ("weights and moments are unchanged" in said) == (not moved)
        assert ("moved weights and moments" in said) == moved


def test_a_dropped_first_epoch_leaves_the_second_what_it_would_be(
    raw: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights have not moved, so the second epoch's update is the first one's."""
    raw["evaluation"] = {"docs": 0}
    options = ["objective.algorithm=clipped_ratio", "run.steps=1", "optim.lr=0.01"]
    once = Trainer(Config.parse(raw, [*options, f"run.dir={tmp_path / 'once'}"]))
    once.fit()
    monkeypatch.setenv("RNTP_FAULT", "gradient#1=nan")
    options += ["objective.epochs_per_rollout=2", f"run.dir={tmp_path / 'twice'}"]
    twice = Trainer(Config.parse(raw, options))
    twice.fit()
    for name, master in once.optimizer.masters.items():
        torch.testing.assert_close(twice.optimizer.masters[name], master, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_every_ratio_goes_several_epochs(raw: dict, tmp_path: Path) -> None:
    options = ["optim.lr=0.01", "optim.warmup_steps=0", "objective.epochs_per_rollout=2"]
    rows = {}
    for algorithm in ("clipped_ratio", "cispo", "gspo"):
        folder = fit(
            raw, *options, f"objective.algorithm={algorithm}", f"run.dir={tmp_path / algorithm}"
        ).config.run.dir
        rows[algorithm] = comparable(folder)
        assert sum(row["policy/clip_frac"] for row in rows[algorithm]) > 0
    # The second step's thoughts come from what two epochs of each have made of the weights.
    assert len({row[1]["loss/total"] for row in rows.values()}) == 3


def test_rewards_of_a_whole_step_do_not_depend_on_microbatches(raw: dict, tmp_path: Path) -> None:
    raw["evaluation"] = {"docs": 0}
    options = ["objective.advantage=step", "model.dtype=float32", "run.steps=2"]
    whole, cut = (
        comparable(fit(raw, *options, *more, f"run.dir={tmp_path / name}").config.run.dir)
        for name, *more in (
            ("whole", "parallel.tokens_per_microbatch=10000"),
            ("cut", "parallel.tokens_per_microbatch=16"),
        )
    )
    plain = comparable(fit(raw, *options[1:], f"run.dir={tmp_path / 'plain'}").config.run.dir)
    for one, other in zip(whole, cut, strict=True):
        assert one["loss/total"] == pytest.approx(other["loss/total"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    assert whole[0]["loss/pg"] != pytest.approx(plain[0]["loss/pg"], rel=0.05)


def test_rewards_of_a_whole_step_cost_a_forward_without_gradients(
    raw: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["evaluation"] = {"docs": 0}
    options = ["run.steps=1", "parallel.tokens_per_microbatch=10000", "reward.scheme=format_only"]
    trainer = Trainer(Config.parse(raw, [*options, "objective.drop_dead_groups=true"]))
    calls: list[tuple[bool, int]] = []
    forward = trainer.model.hf.base_model.forward

    def counted(**more: torch.Tensor) -> object:
        calls.append((torch.is_grad_enabled(), more["input_ids"].shape[1]))
        return forward(**more)

    monkeypatch.setattr(trainer.model.hf.base_model, "forward", counted)
    trainer.fit()
    (row,) = read_metrics(trainer.config.run.dir)
    assert calls[-2:] == [(False, row["tokens/tree"]), (True, row["tokens/tree"])]
    assert [grad for grad, _ in calls].count(True) == 1
    assert 0 < row["group/dropped_frac"] == row["group/dead_frac"]


@pytest.mark.parametrize("where", ["loss", "reward"])
@pytest.mark.parametrize("weights", ["frozen", pytest.param("ema", marks=pytest.mark.slow)])
def test_a_divergence_is_measured_kept_and_resumed(
    raw: dict, tmp_path: Path, weights: str, where: str
) -> None:
    raw["evaluation"] = {"docs": 0}
    options = [
        "objective.kl_weight=0.1",
        f"objective.kl_in={where}",
        f"objective.kl_reference={weights}",
        "objective.entropy_weight=0.01",
        "objective.importance_cap=1.5",
        "baseline.decay=0.5",
    ]
    whole = fit(raw, *options, f"run.dir={tmp_path / 'whole'}").config.run.dir
    parts = f"run.dir={tmp_path / 'parts'}"
    for steps in (1, 3, 4):
        folder = fit(raw, *options, parts, f"run.steps={steps}").config.run.dir
    rows = comparable(whole)
    assert comparable(folder) == rows
    assert rows[0]["kl/reference"] == 0  # the copy is the policy still, to the bit
    assert all(row["kl/reference"] > 0 for row in rows[1:])
    assert all(row["policy/truncated_frac"] == 0 for row in rows)
    for row in rows:
        assert row["loss/entropy"] == pytest.approx(row["entropy/thought"], rel=1e-5)
        total = row["loss/pg"] + 0.1 * (row["loss/continuation"] + row["loss/ntp"])
        total += 0.1 * row.get("loss/kl", 0.0) - 0.01 * row["loss/entropy"]
        assert row["loss/total"] == pytest.approx(total, abs=1e-5)
        assert ("loss/kl" in row) == (where == "loss")
    if where == "loss":  # both are k3 here
        assert rows[3]["loss/kl"] == pytest.approx(rows[3]["kl/reference"], rel=1e-5)


def test_groups_closer_than_usual_are_dropped_and_resumed(raw: dict, tmp_path: Path) -> None:
    raw["evaluation"] = {"docs": 0}
    option = "objective.min_group_std=0.9"
    whole = fit(raw, option, f"run.dir={tmp_path / 'whole'}")
    parts = f"run.dir={tmp_path / 'parts'}"
    for steps in (1, 3, 4):
        folder = fit(raw, option, parts, f"run.steps={steps}").config.run.dir
    rows = comparable(whole.config.run.dir)
    assert comparable(folder) == rows
    assert rows[0]["group/dropped_frac"] == 0  # nothing is usual yet
    assert 0 < sum(row["group/dropped_frac"] for row in rows) < 3
    expected = rows[0]["group/reward_std"]
    for row in rows[1:]:
        expected = 0.9 * expected + 0.1 * row["group/reward_std"]
    assert whole.followers.group_spread.mean == pytest.approx(expected, rel=1e-5)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            return
        time.sleep(0.05)
    raise AssertionError("no step in a minute")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_resumes(
    raw: dict, tmp_path: Path, number: signal.Signals
) -> None:
    raw["run"]["steps"] = 60
    raw["checkpoint"]["every_steps"] = 1000
    raw["evaluation"] = {"docs": 0}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    folder = Path(raw["run"]["dir"])
    command = [sys.executable, "-m", "rntp.cli", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(folder, 3, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 5, output
    assert "the same command resumes" in output
    ((stopped, _),) = committed(folder / "checkpoints")
    assert 3 <= stopped < 60

    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{stopped} of 60 steps done" in again.stdout
    whole = fit(raw, f"run.dir={tmp_path / 'whole'}").config.run.dir
    assert comparable(folder) == comparable(whole)


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_committed(raw: dict, tmp_path: Path) -> None:
    raw["run"]["steps"] = 60
    raw["evaluation"] = {"docs": 0}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    folder = Path(raw["run"]["dir"])
    command = [sys.executable, "-m", "rntp.cli", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(folder, 5, process)
    process.kill()
    process.wait()
    stray = folder / "checkpoints" / "step_00000099"  # a folder without COMMIT.json
    stray.mkdir()
    raw["run"]["steps"] = 8
    done = fit(raw).config.run.dir
    whole = fit(raw, f"run.dir={tmp_path / 'whole'}").config.run.dir
    if len(comparable(done)) == 8:
        assert comparable(done) == comparable(whole)
    else:  # the run had got past step 8 before it was killed
        assert comparable(done)[:8] == comparable(whole)


def test_non_finite_steps_change_nothing_and_a_streak_ends_the_run(
    raw: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    @rewards.register("broken")
    def broken(inputs):
        return rewards.REGISTRY["log_ratio"](inputs) * float("nan")

    try:
        trainer = Trainer(
            Config.parse(
                raw, ["reward.scheme=broken", "run.on_trouble={roll_back: {skipped_steps: 3}}"]
            )
        )
        before = {name: master.clone() for name, master in trainer.optimizer.masters.items()}
        with pytest.raises(Diverged, match="3 steps in a row") as caught:
            trainer.fit()
        assert caught.value.exit_code == 6
        for name, master in trainer.optimizer.masters.items():
            assert torch.equal(master, before[name])
        assert not any(moment.any() for moment in trainer.optimizer.moments().values())
        assert [row["skipped"] for row in read_metrics(trainer.config.run.dir)] == [1, 1, 1]
        assert "ordinals 0 … 2 were not trained" in (trainer.config.run.dir / "log.txt").read_text()
    finally:
        del rewards.REGISTRY["broken"]


def test_an_alarm_is_said_once_over_a_resume_and_stops_if_asked(
    raw: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rntp.training.alarms.STREAK", 2)

    @rewards.register("constant")
    def constant(inputs):
        return torch.zeros(inputs.logp_think_PGH.shape[:2])

    raw["evaluation"] = {"docs": 0}
    options = ["reward.scheme=constant", "checkpoint.every_steps=1"]
    folder = Path(raw["run"]["dir"])
    try:
        with pytest.raises(Diverged, match=r"after step 2 .*the policy learns nothing") as caught:
            fit(raw, *options, "run.on_trouble=stop")
        assert caught.value.exit_code == 6
        assert [step for step, _ in committed(folder / "checkpoints")] == [1]
        fit(raw, *options, "run.steps=3")
        fit(raw, *options)
    finally:
        del rewards.REGISTRY["constant"]
    said = (folder / "log.txt").read_text().count("learns nothing")
    assert said == 2  # at step 2 of the first start, and of the second; not at 3 and 4


def test_a_checkpoint_from_before_the_alarms_resumes(raw: dict) -> None:
    raw["evaluation"] = {"docs": 0}
    folder = fit(raw, "run.steps=2").config.run.dir
    saved = folder / "checkpoints" / "step_00000002"
    commit = json.loads((saved / "COMMIT.json").read_text())
    kept = {k: v for k, v in commit["files"].items() if not k.startswith("alarms/")}
    assert len(kept) == len(commit["files"]) - 1
    del commit["sha256"]
    (saved / "COMMIT.json").write_text(json.dumps({**commit, "format": 1, "files": kept}))
    shutil.rmtree(saved / "alarms")
    state = json.loads((saved / "state.json").read_text())
    assert state["set_aside"] == []
    assert len(read_metrics(fit(raw).config.run.dir)) == 4
    assert "older than the alarms" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.source=absent"], DataError, "absent"),
        (["reward.scheme=nothing"], ConfigError, "there are: answer_exact, bleu, brier, "),
        (["reward.shadows=[nothing]"], ConfigError, "no reward scheme 'nothing'"),
        (
            ["placement.policy=nothing"],
            ConfigError,
            "there are: by_class, entropy, even, gate, learnability",
        ),
        (["placement.policy=oracle"], DataError, "documents carry labels"),
        (["placement.policy=by_class"], DataError, "documents carry labels"),
        (["data.context_tokens=300"], ConfigError, "sees 256; lower data.context_tokens"),
        (["reward.horizon=200", "data.context_tokens=220"], DataError, "none of the"),
        (["data.heldout_fraction=0"], (ConfigError, DataError), "heldout"),
        (["model.spec=./absent"], ConfigError, "no folder"),
        (["model.spec=package:absent_package"], ConfigError, "is not installed"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    raw: dict, overrides: list[str], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        Trainer(Config.parse(raw, overrides))
    assert not Path(raw["run"]["dir"]).exists()


def test_an_empty_corpus_is_refused(raw: dict, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    raw["data"]["source"] = str(tmp_path / "empty")
    with pytest.raises(DataError, match="rntp data prep"):
        Trainer(Config.parse(raw))
    assert not Path(raw["run"]["dir"]).exists()


def test_a_missing_extra_is_named(raw: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'rntp\[log\]'"):
        Trainer(Config.parse(raw, ["log.mirrors={wandb: null}"]))
    assert not Path(raw["run"]["dir"]).exists()


def test_a_corpus_of_another_tokenizer_is_refused(
    raw: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conftest.tokenizer_digest", lambda tokenizer: "another")
    raw["data"]["source"] = str(write_corpus(tmp_path / "other", 4))
    with pytest.raises(DataError, match="prepared with tokenizer tiny"):
        Trainer(Config.parse(raw))


def test_the_run_folder_belongs_to_one_config(raw: dict, tmp_path: Path) -> None:
    fit(raw, "run.steps=1", "evaluation.docs=0")
    with pytest.raises(ConfigError, match=r"optim.lr: 0.001 there, 0.002 here"):
        Trainer(Config.parse(raw, ["optim.lr=2e-3", "evaluation.docs=0"]))
    with pytest.raises(ConfigError, match="--resume is never"):
        Trainer(Config.parse(raw, ["evaluation.docs=0"]), resume="never")
    with pytest.raises(CheckpointError, match="--resume must"):
        Trainer(Config.parse(raw, [f"run.dir={tmp_path / 'new'}"]), resume="must")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="no run folder"):
        Trainer(Config.parse(raw, [f"run.dir={other}"]))
    with pytest.raises(ConfigError, match="is a file"):
        Trainer(Config.parse(raw, [f"run.dir={other / 'thesis.tex'}"]))
    with pytest.raises(ConfigError, match=r"thesis\.tex is a file"):
        Trainer(Config.parse(raw, [f"run.dir={other / 'thesis.tex' / 'run'}"]))
    assert sorted(p.name for p in other.iterdir()) == ["thesis.tex"]
    with (
        pytest.raises(ConfigError, match="/proc/rntp cannot be written"),
        run_folder.claim(Config.parse(raw, ["run.dir=/proc/rntp"])),
    ):
        pass


def test_other_data_under_the_same_name_is_refused(raw: dict, tmp_path: Path) -> None:
    fit(raw, "run.steps=1", "evaluation.docs=0")
    raw["data"]["source"] = str(write_corpus(tmp_path / "other", 23))
    with pytest.raises(CheckpointError, match="trained on other data than"):
        fit(raw, "evaluation.docs=0")


def test_damaged_checkpoints(raw: dict) -> None:
    folder = fit(raw, "evaluation.docs=0").config.run.dir
    good = comparable(folder)
    [newest] = (folder / "checkpoints" / "step_00000004" / "weights").iterdir()
    flipped = bytearray(newest.read_bytes())
    flipped[-5] ^= 1
    newest.write_bytes(flipped)
    fit(raw, "evaluation.docs=0")  # falls back to step 2 and repeats 3 and 4
    assert "step_00000004 is damaged" in (folder / "log.txt").read_text()
    assert f"weights/{newest.name}: its bytes have changed" in (folder / "log.txt").read_text()
    assert comparable(folder) == good
    for _, path in committed(folder / "checkpoints"):
        next((path / "moments").iterdir()).unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        fit(raw, "evaluation.docs=0")


def test_a_full_disk_during_a_save(raw: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    trainer = Trainer(Config.parse(raw, ["evaluation.docs=0", "checkpoint.every_steps=1"]))
    monkeypatch.setattr("rntp.run.checkpoint.shards.write", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer.fit()
    assert list((trainer.config.run.dir / "checkpoints").iterdir()) == []


def test_too_little_disk_is_noticed_at_the_start(
    raw: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("rntp.training.preflight.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(CheckpointError, match=r"checkpoints need .* Lower checkpoint\.keep"):
        Trainer(Config.parse(raw))


def test_the_thoughts_of_a_long_run_have_to_fit_on_the_disk(
    raw: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million steps, with all thoughts and with one group of three."""

    class Usage:
        free = 2_000_000_000

    monkeypatch.setattr("rntp.training.preflight.shutil.disk_usage", lambda path: Usage)
    long = ["run.steps=1000000"]
    with pytest.raises(CheckpointError, match=r"thoughts of all steps up to 5\.0 GB; 2\.0 GB are"):
        Trainer(Config.parse(raw, long))
    Trainer(Config.parse(raw, [*long, "log.rollouts_per_step=3"]))


def test_a_step_that_may_not_fit_is_told_and_tried(
    raw: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimate is no proof: the run goes on, with the same numbers."""
    raw["run"]["steps"] = 1
    known = comparable(fit(raw, f"run.dir={raw['run']['dir']}-known").config.run.dir)
    monkeypatch.setattr("rntp.training.step_memory.total_bytes", lambda device: 500_000_000)
    folder = fit(raw).config.run.dir
    log = (folder / "log.txt").read_text(encoding="utf-8")
    told = r"about 7\d\d\.\d MB .* there are 500\.0 MB; should it be killed: lower"
    assert re.search(told, log)
    assert comparable(folder) == known


def tried(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, there: float) -> tuple[float, float]:
    """Bytes of a step that keeps all and of one that computes again, by a page that was tried."""
    monkeypatch.setattr("rntp.training.step_memory.total_bytes", lambda device: there)
    memory = StepMemory.of(trainer.config, trainer.model)
    assert memory.measured
    return memory.whole, memory.again


def test_layers_compute_again_what_does_not_fit_and_the_numbers_are_the_same(
    raw: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = comparable(fit(raw).config.run.dir)
    trainer = Trainer(Config.parse(raw))
    assert trainer.recomputes is False
    assert not trainer.memory.measured  # the estimate leaves no doubt
    most, least = tried(trainer, monkeypatch, trainer.memory.whole)
    assert least < most
    monkeypatch.setattr("rntp.training.step_memory.total_bytes", lambda device: (least + most) / 2)
    raw["run"]["dir"] += "-small"
    off = fit(raw, "parallel.activation_checkpointing=false", f"run.dir={raw['run']['dir']}-off")
    assert off.recomputes is False
    log = (off.config.run.dir / "log.txt").read_text(encoding="utf-8")
    assert "activation_checkpointing is off: set it to auto" in log
    small = fit(raw)
    assert small.recomputes is True
    log = (small.config.run.dir / "log.txt").read_text(encoding="utf-8")
    assert "layers keep only their inputs for the backward" in log
    assert "should it be killed" not in log
    assert comparable(small.config.run.dir) == known
    monkeypatch.setattr("rntp.training.step_memory.total_bytes", lambda device: least - 1)
    raw["run"]["dir"] += "-smaller"
    smaller = fit(raw).config.run.dir
    log = (smaller / "log.txt").read_text(encoding="utf-8")
    assert "should it be killed: lower parallel.tokens_per_microbatch" in log


def test_a_stop_before_the_first_step_leaves_a_folder_that_starts(raw: dict) -> None:
    trainer = Trainer(Config.parse(raw))
    trainer.stop.received = "SIGINT"
    with pytest.raises(Preempted):
        trainer.fit()
    assert committed(trainer.config.run.dir / "checkpoints") == []
    assert len(read_metrics(fit(raw).config.run.dir)) == 4


def test_two_processes_cannot_share_a_run_folder(raw: dict) -> None:
    import fcntl

    folder = Path(raw["run"]["dir"])
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            fit(raw)
