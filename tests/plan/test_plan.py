"""What `rntp plan` counts is what a run counts, and what it carries on is arithmetic of it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rntp_kernels import TreeLayout
from rntp_kernels.tree_attention.chains import chains
from transformers import AutoModelForCausalLM

from rntp import cli
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.plan.budget import Plan, Wish, plan, with_flop
from rntp.plan.calibrate import points_of
from rntp.plan.cases import Case, calibration_cases
from rntp.plan.cluster import ONE_H200, Cluster
from rntp.plan.predict import memory_bytes
from rntp.plan.rates import Rates, assumed, fit, non_negative, ring_gb_s
from rntp.plan.samplers import published_bytes, samplers_for, sampling
from rntp.plan.text import facts, text, warnings
from rntp.plan.work import PHASES, Share, amounts, exchanged_bytes
from rntp.training.estimate import Shape, Tokens, attention_flop, full_flop, peak_memory

CLUSTER = {
    "name": "some",
    "device": {
        "name": "D",
        "tflops": 100,
        "memory_gb": 80,
        "memory_gb_s": 2000,
        "dollars_per_hour": 2,
    },
    "devices_per_node": 8,
    "nodes_per_centre": 4,
    "links": {"inside_gb_s": 300, "between_gb_s": 20},
}


NO_WISH = Wish()


def config_of(case: Case, *overrides: str) -> Config:
    return Config.parse(case.run(Path("unused"), "float32", "cpu"), overrides)


def shape_of(case: Case) -> Shape:
    with torch.device("meta"):
        return Shape.of(AutoModelForCausalLM.from_config(case.model()))


def test_amounts_are_those_that_a_run_counts() -> None:
    case = Case(docs=4)
    config, shape = config_of(case), shape_of(case)
    found = amounts(Share.of(config), shape)
    flop = sum(n for part in found.values() for name, n in part.items() if name.endswith("_flop"))
    attended = sum(attention_flop(config, shape).values())
    assert flop == pytest.approx(full_flop(config, shape) + attended, rel=1e-12)
    assert set(found) == set(PHASES)
    # A share of one of two ranks is half of it, and something travels.
    half = amounts(Share.of(config, 2), shape)
    assert half["train"]["layers_flop"] == found["train"]["layers_flop"] / 2
    assert half["train"]["reduced_bytes"] == shape.parameters * 4 / 2
    assert half["update"]["gathered_bytes"] == shape.parameters * 4 / 2
    assert found["train"]["reduced_bytes"] == found["train"]["hops"] == 0
    # 4 documents, K 2, G 4: 16 decode steps of the batch, in each of the layers.
    assert found["rollout"]["decode_launches"] == 16 * 4
    assert found["rest"]["thoughts"] == 4 * 2 * 4


def test_recomputing_costs_a_forward_more() -> None:
    case = Case()
    config, shape = config_of(case), shape_of(case)
    kept = amounts(Share.of(config), shape)["train"]
    again = amounts(Share.of(config, recompute=True), shape)["train"]
    forward = 2 * shape.trunk * Tokens.of(config).tree
    assert again["layers_flop"] - kept["layers_flop"] == forward
    assert again["head_flop"] == kept["head_flop"]


def test_attention_is_that_of_the_tree() -> None:
    """Against the pairs of a real layout whose positions lie around the mean prefix."""
    case = Case(context=128, positions=2, thoughts=3, budget=16, horizon=8, docs=1)
    config, shape = config_of(case), shape_of(case)
    mean = (8 + 128 - 8) // 2
    lengths, parents, attach = [128], [-1], [0]
    for position in (mean - 10, mean + 10):
        for _ in range(3):
            lengths.append(config.branch_tokens)
            parents.append(0)
            attach.append(position)
    pairs = 0
    for chain in chains(TreeLayout(tuple(lengths), tuple(parents), tuple(attach))):
        rows = chain.stop - chain.start
        pairs += rows * (rows + 1) // 2 + rows * sum(b - a for a, b in chain.seen)
    found = attention_flop(config, shape)
    assert shape.q_width == 128
    assert found["forward, layers"] == 4 * shape.q_width * shape.layers * pairs
    assert found["backward, layers"] == 2.5 * found["forward, layers"]


def test_rows_of_a_share_are_those_that_ranks_send() -> None:
    from rntp.bench.exchange import made_up
    from rntp.objective.quantities import Counts
    from rntp.runtime.packing import to_bytes

    settings = made_up.config(3)
    sampled = made_up.rollouts(range(3))
    counts = Counts.of(sampled, settings.reward.horizon)
    table = made_up.step_stats(settings, sampled, counts).table()
    assert exchanged_bytes(settings) == len(to_bytes(table.packed()))


def test_non_negative_least_squares() -> None:
    table = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 0], [2, 0, 1]])
    exact = np.array([3.0, 0.5, 0.0])
    assert non_negative(table, table @ exact) == pytest.approx(exact, abs=1e-9)
    # The free solution has a cost below zero: it becomes 0 and the rest is fitted again.
    x = non_negative(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0]))
    assert x[1] == 0.0
    assert x[0] == pytest.approx(1.5)
    assert non_negative(np.zeros((2, 1)), np.ones(2)) == pytest.approx([0.0])


def test_costs_that_were_planted_are_found() -> None:
    """Runs whose seconds are made from known costs: others are predicted to the digit."""
    costs = assumed(Cluster.parse(CLUSTER)).costs
    known = Rates(costs, "planted")
    cases = calibration_cases("cpu", ranks=2)
    points = [points_of(case)[0] for case in cases]
    seconds = [{p: sum(s.values()) for p, s in known.seconds(point).items()} for point in points]
    found = fit(list(zip(points, seconds, strict=True)), "test", "cpu")
    assert max(found.error.values()) < 1e-6
    other = points_of(Case(hidden=192, layers=6, positions=3, docs=4, ranks=2))[0]
    assert found.total(other) == pytest.approx(known.total(other), rel=0.02)
    # And it is the sizes that make the difference.
    assert found.total(other) > 1.5 * found.total(points[1])
    with pytest.raises(ConfigError, match="no step was measured"):
        fit([], "test", "cpu")


def test_rates_of_a_file(tmp_path: Path) -> None:
    rates = Rates({"rollout": {"once": 1.0}}, "measured on a test", process_bytes=3e8, kind="cpu")
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(rates.as_dict()))
    assert Rates.load(path) == rates
    config, shape = config_of(Case()), shape_of(Case())
    least = memory_bytes(config, shape, 1, rates)
    assert least == pytest.approx(peak_memory(config, shape) - 0.7e9 + 3e8)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="--calibrate"):
        Rates.load(path)


def test_the_narrowest_link_decides() -> None:
    node = Cluster.parse({**CLUSTER, "nodes_per_centre": 1})
    assert ring_gb_s(node) == 300
    assert ring_gb_s(Cluster.parse(CLUSTER)) == 8 * 20
    far = {**CLUSTER, "centres": 2, "links": {**CLUSTER["links"], "between_centres_gb_s": 10}}
    assert ring_gb_s(Cluster.parse(far)) == 10
    assert Cluster.parse(far).devices == 64


def test_a_cluster_file_that_is_wrong_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(json.dumps({**CLUSTER, "nodes": 3}))
    with pytest.raises(ConfigError, match=r"cluster.yaml: nodes: .*docs/scale.md"):
        Cluster.load(path)
    path.write_text(json.dumps({**CLUSTER, "device": {**CLUSTER["device"], "tflops": 0}}))
    with pytest.raises(ConfigError, match=r"device.tflops"):
        Cluster.load(path)


def planned(case: Case, *overrides: str, wish: Wish = NO_WISH, **cluster: object) -> Plan:
    config = config_of(case, *overrides)
    machines = Cluster.parse({**CLUSTER, **cluster})
    return plan(config, shape_of(case), machines, assumed(machines), wish)


def test_a_run_of_so_many_flop() -> None:
    case = Case(docs=32)
    config, shape = config_of(case), shape_of(case)
    each = full_flop(config, shape) + sum(attention_flop(config, shape).values())
    assert with_flop(config, shape, 1e6 * each).run.steps == 1_000_000
    found = planned(case, wish=Wish(flop=100 * each))
    assert found.config.run.steps == 100
    assert found.step.flop == each
    shown = facts(found)
    assert shown["flop of the run"] == pytest.approx(100 * each)
    assert sum(shown["flop of a step"].values()) == pytest.approx(each)
    # Hours and money follow from the step: 32 devices, 2 dollars an hour.
    assert found.hours * 3600 == pytest.approx(found.simulated.wall_s)
    assert found.dollars == pytest.approx(found.hours * 32 * 2)
    assert 0 < found.utilisation() < 1


def test_devices_without_work_are_told() -> None:
    found = planned(Case(docs=8))
    assert found.ranks == 8
    assert any("24 of 32 devices have nothing to do" in line for line in warnings(found))
    assert not any("nothing to do" in line for line in warnings(planned(Case(docs=32))))


def test_a_model_that_does_not_fit_is_told_with_the_reason() -> None:
    case = Case(docs=32)
    shape = replace(shape_of(case), parameters=20_000_000_000)
    machines = Cluster.parse(CLUSTER)
    found = plan(config_of(case), shape, machines, assumed(machines), Wish())
    # Summed gradient and copy, whole on every rank: 4 + 4 bytes a parameter in float32.
    assert found.step.memory["copy that computes"] == 8 * 20e9
    assert found.recompute
    [line] = [w for w in warnings(found) if "DOES NOT FIT" in w]
    assert "copy that computes (160.0 GB)" in line
    assert line in text(found)


def test_failures_that_come_before_a_checkpoint_are_told() -> None:
    never = {"device_hours": 0.001, "restart_minutes": 0.1}
    found = planned(Case(docs=32, steps=500), failures=never)
    assert found.simulated.steps < 500
    assert any("DOES NOT END" in line for line in warnings(found))
    usual = planned(Case(docs=32, steps=500))
    assert usual.simulated.steps == 500
    assert not any("DOES NOT END" in line for line in warnings(usual))


def test_the_best_interval_is_youngs() -> None:
    found = planned(Case(docs=32))
    between = 50_000 * 3600 / 32
    assert found.best_interval == pytest.approx(
        math.sqrt(2 * found.save_s * between) / found.step_s
    )


def test_the_fewest_samplers_of_an_age() -> None:
    case = Case(docs=32, hidden=512, budget=64)
    config, shape = config_of(case), shape_of(case)
    rates = assumed(ONE_H200)
    own = rates.seconds(amounts(Share.of(config), shape))
    train_s = sum(sum(s.values()) for p, s in own.items() if p != "rollout") / 4
    found = samplers_for(config, shape, rates, train_s, 10.0, 8)
    assert found.trainer_waits < 1e-9
    assert found.age <= 8
    fewer = sampling(config, shape, rates, found.samplers - 1, train_s, 10.0)
    assert fewer.trainer_waits > 0 or fewer.age > 8
    with pytest.raises(ConfigError, match="is the least; raise"):
        samplers_for(config, shape, rates, train_s / 1000, 10.0, 1)
    with pytest.raises(ConfigError, match="age 0"):
        samplers_for(config, shape, rates, train_s, 10.0, 0)


def test_samplers_read_what_has_changed() -> None:
    def read(dtype: str, *overrides: str) -> float:
        config = config_of(Case(hidden=512)).model_copy(deep=True)
        every = {"whole_every": int(overrides[0])} if overrides else {}
        samplers = config.rollout.samplers.model_copy(update=every)
        rollout = config.rollout.model_copy(update={"samplers": samplers})
        model = config.model.model_copy(update={"dtype": dtype})
        return published_bytes(
            config.model_copy(update={"rollout": rollout, "model": model}), shape_of(Case())
        )

    parameters = shape_of(Case()).parameters
    # One whole version of ten, nine of 3 %; in float32 everything changes.
    assert read("bfloat16") == pytest.approx(2 * parameters * (1 + 9 * 0.03) / 10)
    assert read("bfloat16", "1") == 2 * parameters
    assert read("float32") == 4 * parameters


def test_samplers_take_devices_from_training() -> None:
    case = Case(docs=64, hidden=512, layers=8)
    found = planned(case, wish=Wish(age=3))
    assert found.sampling
    assert found.ranks + found.sampling.samplers == found.devices == 32
    assert found.sampling.trainer_waits < 0.01
    assert found.simulated.ages
    assert max(found.simulated.ages) <= 3
    named = planned(case, wish=Wish(samplers=5))
    assert named.ranks == 27
    with pytest.raises(ConfigError, match="one has to train"):
        planned(case, wish=Wish(samplers=32))


def test_the_command_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(hidden=64, layers=2, vocabulary=64)
    case.model().save_pretrained(tmp_path / "model")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(case.run(tmp_path, "bfloat16", "cpu")))
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(json.dumps(CLUSTER))
    line = ["plan", str(config), "--cluster", str(cluster), "--set", "data.docs_per_step=32"]
    cli.main([*line, "--flop", "1e18", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["cluster"]["that train"] == 32
    assert found["flop of the run"] == pytest.approx(1e18, rel=1e-3)
    assert any("--calibrate" in line for line in found["warnings"])
    cli.main(line)
    said = capsys.readouterr().out
    assert "assumed from the data sheet of some" in said
    assert "% of the devices' FLOP/s" in said


@pytest.mark.slow
def test_calibration_measures_runs_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rntp.plan import calibrate, measure

    tiny = Case(hidden=32, layers=1, vocabulary=64, context=32, budget=4, horizon=4, steps=3)
    cases = [tiny, replace(tiny, ranks=2)]
    monkeypatch.setattr(calibrate, "calibration_cases", lambda kind, ranks: cases)
    tiny.model().save_pretrained(tmp_path / "model")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tiny.run(tmp_path, "float32", "cpu")))
    line = ["plan", str(config), "--calibrate", "--rates", str(tmp_path / "rates.json"), "--json"]
    cli.main(line)
    found = json.loads(capsys.readouterr().out)
    assert found["rates"].startswith("measured on")
    rates = Rates.load(tmp_path / "rates.json")
    # A process of Python, torch and transformers.
    assert 0.2e9 < rates.process_bytes < 2e9
    measured = json.loads((tmp_path / "rates.runs.json").read_text())
    assert [m["case"]["ranks"] for m in measured] == [1, 2]
    assert all(0 < m["step_s"] <= m["clock_s"] * 1.001 for m in measured)
    assert rates.total(points_of(tiny)[0]) == pytest.approx(measured[0]["step_s"], rel=0.5)
    # What is measured is not measured again.
    monkeypatch.setattr(measure, "measure", None)
    cli.main(line)


@pytest.mark.slow
def test_a_measured_run_that_fails_is_told_with_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from rntp.plan.measure import RunFailed, measure

    case = Case(hidden=32, layers=1, vocabulary=64, context=32, horizon=4, budget=4)
    monkeypatch.setattr(Case, "prepare", lambda self, folder: None)
    with pytest.raises(RunFailed, match="there is no corpus folder"):
        measure(case, dtype="float32", device="cpu")
