"""Every method's file starts, trains, and does the thing that makes it that method."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from conftest import write_corpus

from rntp import rewards
from rntp.ablate import Experiment
from rntp.config import Config
from rntp.config.files import method_fields
from rntp.placement.sentences import SentenceStarts
from rntp.trainer import Trainer

pytestmark = pytest.mark.slow

METHODS = Path(__file__).parents[2] / "experiments" / "methods"
FILES = sorted(path for path in METHODS.glob("*.yaml") if path.stem != "planted")
CONTROLS = {"cpt", "mixed_sft", "random_reward", "format_only", "pause"}
# Sizes for a random model of two layers; what makes the method stays.
SMALL = {
    "model.dtype": "float32",
    "data.context_tokens": 96,
    "data.docs_per_step": 3,
    "placement.min_prefix_tokens": 8,
    "run.steps": 2,
    "optim.lr": 1e-3,
    "optim.warmup_steps": 0,
    "evaluation.docs": 0,
    "parallel.tokens_per_microbatch": 500,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "shards", stops=True)


def load(name: str, folder: Path, corpus: Path, model_folders: dict, **more: object) -> Config:
    given = {
        **SMALL,
        "model.spec": model_folders["llama"],
        "data.source": corpus,
        "run.dir": folder / name,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    path = METHODS / f"{name}.yaml"
    if method_fields(path).get("thought.thought_tokens", 99) > 8:
        given.setdefault("thought.thought_tokens", 5)
    return Config.load(path, [f"{key}={value}" for key, value in given.items()])


class Ran:
    """A finished run: its trainer, its metrics, and a row for each thought."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.trainer = Trainer(config)
        self.trainer.fit()
        self.metrics = lines(config.run.dir / "metrics.jsonl")
        self.thoughts = [
            row
            for path in sorted((config.run.dir / "rollouts").glob("*.jsonl"))
            for row in lines(path)
        ]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(corpus: Path, tmp_path_factory: pytest.TempPathFactory, model_folders: dict) -> "Cache":
    return Cache(corpus, tmp_path_factory.mktemp("runs"), model_folders)


class Cache(dict[str, Ran]):
    """Runs by the name of their method, made when asked for."""

    def __init__(self, corpus: Path, folder: Path, model_folders: dict) -> None:
        super().__init__()
        self.args = folder, corpus, model_folders

    def __missing__(self, name: str) -> Ran:
        self[name] = Ran(load(name, *self.args))
        return self[name]


def test_the_files_are_those_that_were_promised() -> None:
    names = "rntp rpt rlp quiet_star fast_quiet_star rlpt rmt pretrain_zero vr_cli jepo latro "
    names += "verifree rlpr nover nrt tpt"
    assert {path.stem for path in FILES} == {*names.split()} | CONTROLS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_it_is(path: Path) -> None:
    """Its paper, and what is faithful and what is not; then only what it changes."""
    head = path.read_text().partition("base:")[0]
    if path.stem not in ("cpt", "random_reward", "format_only"):
        assert re.search(r"\d{4}\.\d{5}|blog\.jxmo\.io", head), head
        assert "Differs:" in head or "Ours," in head or path.stem == "pause"
    config = Config.load(path)
    assert config.run.name == path.stem
    assert str(config.run.dir) == f"runs/methods/{path.stem}"
    own = method_fields(path)
    assert own
    assert len(own) < 25


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_trains(path: Path, ran: Cache) -> None:
    run = ran[path.stem]
    assert [row["step"] for row in run.metrics] == [1, 2]
    numbers = [v for row in run.metrics for v in row.values() if isinstance(v, float)]
    assert all(math.isfinite(v) for v in numbers)
    # An exact match never comes by chance in a random model, and then there is nothing to learn.
    assert all(row["grad_norm"] > 0 or row["reward/std"] == 0 for row in run.metrics)
    assert bool(run.thoughts) == (run.config.thought.thoughts_per_position > 0)


def test_rntp_compares_with_the_empty_thought(ran: Cache) -> None:
    """Its member of the group has reward 0, so the advantages do not add up to 0."""
    run = ran["rntp"]
    for group in groups(run):
        rewards, advantages = column(group, "reward"), column(group, "advantage")
        everyone = torch.cat([rewards, torch.zeros(1)])
        size = len(everyone)
        expected = (rewards - everyone.mean()) * size / (size - 1)
        torch.testing.assert_close(advantages, expected, rtol=1e-4, atol=1e-5)


def test_rpt_thinks_above_the_threshold_and_checks_the_bytes_of_an_answer(ran: Cache) -> None:
    run = ran["rpt"]
    assert all(row["placement/in_band_frac"] == 1 for row in run.metrics)
    assert all(row["placement/entropy"] >= 1 for row in run.metrics)
    assert {row["reward"] for row in run.thoughts} <= {0, 1}
    assert any(row["answer"] for row in run.thoughts)
    for row in run.thoughts:
        truth = "".join(row["continuation_tokens"]).strip()
        said = row["answer"].strip()
        assert row["reward"] == 0 or truth.startswith(said) or said.startswith(truth)


def test_the_average_of_rlp_changes_the_reward_and_nothing_else(
    ran: Cache, tmp_path: Path, corpus: Path, model_folders: dict
) -> None:
    run = ran["rlp"]
    assert all(len(row["continuation_tokens"]) == 1 for row in run.thoughts)
    assert len({(r["ordinal"], r["position"]) for r in run.thoughts}) == len(
        {r["ordinal"] for r in run.thoughts}
    )
    plain = Ran(load("rlp", tmp_path, corpus, model_folders, baseline__weights="none"))
    for one, other in zip(run.metrics, plain.metrics, strict=True):
        assert one["reward/mean"] != other["reward/mean"]
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_quiet_star_pushes_no_thought_below_none(ran: Cache) -> None:
    run = ran["quiet_star"]
    assert run.config.placement.positions_per_doc == 16
    assert all(len(group) == 2 for group in groups(run))
    for row in run.thoughts:
        assert row["reward"] == pytest.approx(max(0.0, row["rewards"]["log_ratio"]), abs=1e-6)
    total = run.metrics[0]
    parts = total["loss/pg"] + 0.5 * total["loss/continuation"] + 0.5 * total["loss/ntp"]
    assert total["loss/total"] == pytest.approx(parts, abs=1e-5)


def test_fast_quiet_star_compares_with_where_it_started(ran: Cache) -> None:
    run = ran["fast_quiet_star"]
    assert run.trainer.followers.reference is not None
    short, long = (
        Config.load(METHODS / f"{name}.yaml").thought.thought_tokens
        for name in ("fast_quiet_star", "quiet_star")
    )
    assert short < long
    second = [row for row in run.thoughts if row["policy_version"] == 1]
    apart = [abs(row["rewards"]["log_ratio"] - sum(row["gain_per_token"])) for row in second]
    assert max(apart) > 1e-4  # the live weights say something else without a thought


def test_rlpt_begins_at_sentences_and_asks_a_judge(ran: Cache) -> None:
    run = ran["rlpt"]
    assert all(0 < row["reward"] < 1 for row in run.thoughts)
    starts = SentenceStarts(run.trainer.model.tokenizer)
    taken, wanted = 0, 0
    two_steps = range(2 * run.config.data.docs_per_step)
    for context in run.trainer.corpus.train.take(two_steps):
        mine = {r["position"] for r in run.thoughts if r["ordinal"] == context.ordinal}
        last = len(context) - run.config.reward.horizon
        able = set(starts.of(context.token_ids).nonzero().flatten().tolist())
        able = {p for p in able if 8 <= p <= last}
        taken += len(mine & able)
        wanted += min(len(mine), len(able))
    assert taken == wanted > 0


def test_rmt_adds_a_length_to_the_match_and_goes_from_easy_to_hard(ran: Cache) -> None:
    run = ran["rmt"]
    assert run.config.placement.policy == "tiers"
    for row in run.thoughts:
        parts = row["rewards"]
        expected = 0.9 * parts["answer_exact"] + 0.1 * parts["length_triangle"]
        assert row["reward"] == pytest.approx(expected, abs=1e-6)
        assert parts["answer_exact"] in (0, 1)
    assert run.config.objective.ntp_weight == 0.1


def test_pretrain_zero_learns_where_to_ask(ran: Cache) -> None:
    run = ran["pretrain_zero"]
    squares = run.trainer.followers.record.tensors()["squares"]
    assert (squares > 0).any()
    assert run.config.objective.drop_groups_below == 0


def test_vr_cli_pays_in_steps_against_the_frozen_start(ran: Cache) -> None:
    run = ran["vr_cli"]
    assert {round(row["reward"], 5) for row in run.thoughts} <= {0.0, 0.5, 0.9, 1.0}
    assert run.config.reward.horizon == 32
    first, second = run.metrics
    assert first["kl/reference"] == pytest.approx(0, abs=1e-6)
    assert second["kl/reference"] > 0


def test_jepo_credits_a_thought_with_what_it_adds_to_the_bound(ran: Cache) -> None:
    for group in groups(ran["jepo"]):
        s = column(group, "rewards", "logprob")
        bound = s.logsumexp(0) - math.log(len(s))
        for i, row in enumerate(group):
            others = torch.cat([s[:i], s[i + 1 :]])
            without = others.logsumexp(0) - math.log(len(others))
            assert row["advantage"] == pytest.approx(float(bound - without), abs=1e-4)


def test_latro_pays_for_leaving_the_start(
    ran: Cache, tmp_path: Path, corpus: Path, model_folders: dict
) -> None:
    """At the start there is nothing to pay; after a step other advantages are earned."""
    run = ran["latro"]
    free = Ran(load("latro", tmp_path, corpus, model_folders, objective__kl_weight=0))
    for step, alike in ((1, True), (2, False)):
        mine, theirs = (
            torch.tensor([t["advantage"] for t in r.thoughts if t["policy_version"] == step - 1])
            for r in (run, free)
        )
        assert torch.allclose(mine, theirs, atol=1e-5) == alike


def test_verifree_is_paid_the_probability(ran: Cache) -> None:
    for row in ran["verifree"].thoughts:
        assert 0 <= row["reward"] <= 1
    assert ran["verifree"].config.objective.continuation_use == "reward"


def test_rlpr_floors_what_was_gained_over_the_start(ran: Cache) -> None:
    for row in ran["rlpr"].thoughts:
        parts = row["rewards"]
        expected = 0.9 * max(0.0, parts["mean_prob"]) + 0.1 * parts["format_only"]
        assert row["reward"] == pytest.approx(expected, abs=1e-6)


def test_nover_ranks(ran: Cache) -> None:
    for group in groups(ran["nover"]):
        ranks = sorted(column(group, "rewards", "ppl_rank").tolist())
        assert ranks == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-6)


def test_nrt_weighs_hard_tokens_and_floors(ran: Cache) -> None:
    run = ran["nrt"]
    for row in run.thoughts:
        assert row["reward"] == pytest.approx(max(0.0, row["rewards"]["weighted_prob"]), abs=1e-6)
    assert any(row["reward"] == 0 for row in run.thoughts)


@pytest.mark.parametrize("name", ["cpt", "tpt", "mixed_sft"])
def test_plain_training_samples_nothing(ran: Cache, name: str) -> None:
    for row in ran[name].metrics:
        assert row["tokens/thought"] == 0
        assert row["loss/total"] == pytest.approx(row["loss/ntp"], rel=1e-5)


def test_rewards_by_lot_and_for_the_marker(ran: Cache) -> None:
    lots = [row["reward"] for row in ran["random_reward"].thoughts]
    assert 0.3 < sum(lots) / len(lots) < 0.7
    for row in ran["format_only"].thoughts:
        assert row["reward"] == row["closed"]


def test_a_pause_has_no_content(ran: Cache) -> None:
    run = ran["pause"]
    budget = run.config.thought.thought_tokens
    assert {row["thought"] for row in run.thoughts} == {"." * budget}
    assert all(row["loss/pg"] == 0 or run.config.objective.pg_weight == 0 for row in run.metrics)


def test_the_comparison_holds_every_method() -> None:
    experiment = Experiment.load(METHODS / "planted.yaml")
    assert len(experiment.arms) == len(FILES)
    assert len(experiment.controls) == len(CONTROLS)
    assert len(experiment.seeds) >= 3
    # A method over another method brings both along.
    fast = experiment.overrides("Fast Quiet-STaR")
    assert fast["objective.ntp_weight"] == 0.5
    assert fast["baseline.weights"] == "frozen"
    assert experiment.overrides("random reward")["objective.continuation_weight"] == 0.1
    schemes = {
        name
        for arm in experiment.arms
        for name in _names(experiment.overrides(arm).get("reward.scheme", "log_ratio"))
    }
    assert schemes <= set(rewards.REGISTRY)
    assert len(schemes) >= 12


def _names(scheme: object) -> list[str]:
    return list(scheme) if isinstance(scheme, dict) else [str(scheme)]


def groups(run: Ran) -> list[list[dict]]:
    found: dict[tuple[int, int], list[dict]] = {}
    for row in run.thoughts:
        found.setdefault((row["ordinal"], row["position"]), []).append(row)
    return list(found.values())


def column(rows: list[dict], *path: str) -> torch.Tensor:
    values = []
    for row in rows:
        value: object = row
        for key in path:
            assert isinstance(value, dict)
            value = value[key]
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)
