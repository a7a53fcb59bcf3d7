"""The experiment file, the numbers of a grid, and what table and plot make of them.

Runs are made up here, as files; test_ablate_runs.py starts real ones.
"""

import importlib.util
import json
import math
import re
from io import StringIO
from pathlib import Path

import pytest
import yaml
from conftest import tiny_run
from rich.console import Console

from rntp.ablate import Experiment, tabulate
from rntp.ablate.command import ColumnWarner
from rntp.ablate.experiment import Column
from rntp.ablate.grid import Run, check_start, plan, select, state
from rntp.ablate.launch import Board, Ended
from rntp.ablate.numbers import band, paired_difference, running_mean, summarize, t_975
from rntp.ablate.results import leaves, lookup
from rntp.cli import main
from rntp.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def raw(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A raw experiment over a tiny base, in a folder of its own that is also the current one."""
    monkeypatch.chdir(tmp_path)
    base = tiny_run(Path("some/model"), corpus, Path("unused"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(base))
    return {
        "name": "rewards",
        "question": "Which reward finds the gain?",
        "base": "../config.yaml",
        "seeds": [0, 1],
        "set": {"run.steps": 2},
        "arms": {
            "log-ratio, H 1": {"reward.horizon": 1},
            "a | pipe": {"reward.scheme": "logprob"},
            "no thoughts": None,
        },
        "controls": ["no thoughts"],
        "reference": "log-ratio, H 1",
        "columns": {
            "gain, nats": {"eval": "gain/mean", "sign": True},
            "hardest": {"eval": "deciles/1/gain", "digits": 1},
            "change of loss": {"change": "nll/think", "digits": 2},
            "before": {"before": "nll/think"},
            "tokens": {"metrics": "tokens/thought", "sum": True, "digits": 0},
            "length": {"metrics": "thought/tokens_mean", "last": 1},
        },
        "plot": {"y": "gain, nats", "curve": "gain/mean"},
    }


def write(raw: dict) -> Path:
    path = Path("grids/rewards.yaml")
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def load(raw: dict) -> Experiment:
    return Experiment.load(write(raw))


def test_an_experiment_like_another_shares_its_arms_and_their_runs(raw: dict) -> None:
    common = write(raw)
    child = {
        "name": "horizon",
        "question": "How far ahead?",
        "like": "rewards.yaml",
        "set": {"reward.horizon": 3},
        "arms": {"H 4": {"reward.horizon": 4}, "H 3": None},
        "columns": {"more": {"eval": "nll/think"}},
        "controls": [],
    }
    path = common.with_name("horizon.yaml")
    path.write_text(yaml.safe_dump(child, sort_keys=False))
    experiment = Experiment.load(path)
    assert list(experiment.arms) == [*raw["arms"], "H 4", "H 3"]
    assert experiment.controls == ("no thoughts",)
    assert list(experiment.columns) == [*raw["columns"], "more"]
    assert experiment.seeds == (0, 1)
    runs = {run.label: run for run in plan(experiment)}
    # Their own `set` holds for the inherited arms, both for the others, the arm's own before all.
    assert runs["a | pipe, seed 0"].config.reward.horizon == raw_horizon(raw)
    assert runs["H 4, seed 1"].config.reward.horizon == 4
    assert runs["H 3, seed 1"].config.reward.horizon == 3
    assert runs["H 3, seed 1"].config.run.steps == 2
    assert str(runs["H 4, seed 1"].folder).endswith("horizon/h-4/seed_1")
    shared = runs["a | pipe, seed 0"]
    assert shared.folder == plan(Experiment.load(common))[2].folder
    # A run of a shared arm may be there; one of its own may not.
    fake(shared, gain=0.5)
    with pytest.raises(DataError):  # past the folders, and on to the corpus that made up no run
        check_start([shared], resume=False)
    fake(runs["H 3, seed 1"], gain=0.5)
    with pytest.raises(ConfigError, match="--resume"):
        check_start([runs["H 3, seed 1"]], resume=False)

    path.write_text(yaml.safe_dump({**child, "like": "horizon.yaml"}))
    with pytest.raises(ConfigError, match="is like another file itself"):
        Experiment.load(path)


def raw_horizon(raw: dict) -> int:
    base = yaml.safe_load(Path("config.yaml").read_text())
    horizon = base["reward"]["horizon"]
    assert isinstance(horizon, int)
    return horizon


def fake(run: Run, gain: float | None, *, steps: int = 2) -> None:
    """Write what a finished run leaves behind. gain: None for one that never thinks."""
    (run.folder / "eval").mkdir(parents=True)
    (run.folder / "config.yaml").write_text(run.config.to_yaml())
    manifest = {"data_digest": "d" * 64, "git": {"commit": "c" * 40, "dirty": True}, "threads": 1}
    (run.folder / "manifest.json").write_text(json.dumps({**manifest, "device": "cpu (fast)"}))
    for step, loss in ((0, 3.0), (steps, 2.75)):
        thought = {"gain/mean": gain if step else -1.0, "nll/think": loss}
        deciles = [{"decile": n, "gain": 10.0 * n + run.seed} for n in (1, 2)]
        evaluation = {"pages": [{}], "deciles": deciles, **(thought if gain is not None else {})}
        (run.folder / "eval" / f"step_{step:08d}.json").write_text(json.dumps(evaluation))
    rows = [
        {"step": step, "tokens/thought": 100 * step}
        | ({"thought/tokens_mean": 4.0 + step, "gain/mean": 0.1 * step} if gain is not None else {})
        for step in range(1, steps + 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.folder / "metrics.jsonl").write_text(text)


# The experiment file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": {}}, r"arm: no such field; did you mean `arms`\?"),
        ({"columns": {"gain": {"evl": "x"}}}, r"columns.gain.evl: .*did you mean `eval`\?"),
        ({"plot": {"yy": "x", "y": "gain, nats"}}, r"plot.yy: no such field; did you mean `y`"),
        ({"columns": {"gain": {"eval": "x", "before": "x"}}}, r"columns.gain: give one of eval"),
        ({"columns": {"gain": {"metrics": "x"}}}, r"metrics needs `last: <steps>`"),
        ({"columns": {"gain": {"eval": "x", "last": 3}}}, r"`last` and `sum` belong to metrics"),
        (
            {"controls": ["no thought"]},
            r"controls: no arm 'no thought'; did you mean `no thoughts`",
        ),
        ({"plot": {"y": "gain"}}, r"plot.y: no column 'gain'"),
        ({"plot": {"y": "gain, nats", "x": {"x": 1}}}, r"plot.x: no arm 'x' \(there are: log"),
        ({"arms": {"A b": {}, "a-b": {}}, "controls": []}, r"'a-b' and 'A b' would share a folder"),
        ({"arms": {"…": {}}, "controls": []}, r"'…' has no letter or digit"),
        ({"set": {"run.seed": 1}}, r"set: run.seed is what the grid sets"),
        ({"set": {"steps": 1}}, r"set: expected section.field, not 'steps'"),
        ({"seeds": []}, r"seeds: .*at least 1"),
        ({"seeds": [1, 1]}, r"a seed is given twice"),
        ({"name": "a/b"}, r"name: .*pattern"),
        ({"plot": None}, r"reference: the arms are compared by plot.y; give a plot"),
        ({"base": "absent.yaml"}, r"base: there is no config file grids/absent.yaml"),
        ({"question": None}, r"question: .*valid string"),
    ],
)
def test_mistakes_are_explained(raw: dict, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load({**raw, **change})


def test_every_mistake_is_told_at_once(raw: dict) -> None:
    del raw["question"]
    with pytest.raises(ConfigError) as caught:
        load({**raw, "jobs": 2})
    assert "question: required and not given" in str(caught.value)
    assert "jobs: no such field" in str(caught.value)


def test_an_arm_given_twice_is_not_dropped(raw: dict) -> None:
    path = write(raw)
    path.write_text(path.read_text().replace("a | pipe:", "no thoughts:"))
    with pytest.raises(ConfigError, match="'no thoughts' is given twice") as caught:
        Experiment.load(path)
    assert "line " in str(caught.value)


def test_an_arm_takes_over_a_method_before_set_and_its_own(raw: dict) -> None:
    path = write(raw)
    (path.parent / "method.yaml").write_text(
        "base: ground.yaml\nrun: {steps: 9}\nreward: {scheme: logprob, horizon: 7}\n"
        "optim: {lr: 3.0e-4}\n"
    )
    (path.parent / "ground.yaml").write_text("optim: {warmup_steps: 7}\n")
    raw["set"] = {"reward.horizon": 2, "run.steps": 3}
    raw["arms"]["a method"] = {"from": "method.yaml", "optim.lr": 1e-5}
    found = Experiment.load(write(raw))
    expected = {"reward.scheme": "logprob", "reward.horizon": 2, "optim.lr": 1e-5, "run.steps": 3}
    assert found.overrides("a method") == expected
    child = {
        "name": "child",
        "question": "?",
        "like": path.name,
        "set": {"reward.horizon": 5},
        "arms": {"again": {"from": "method.yaml"}},
    }
    (path.parent / "child.yaml").write_text(yaml.safe_dump(child))
    below = Experiment.load(path.parent / "child.yaml")
    assert below.overrides("again") == {**expected, "reward.horizon": 5, "optim.lr": 3e-4}
    assert below.overrides("a method") == expected
    raw["arms"]["a method"] = {"from": "methods.yaml"}
    with pytest.raises(ConfigError, match=r"there is no config file .*methods\.yaml"):
        Experiment.load(write(raw))


def test_files_that_are_none(raw: dict) -> None:
    for text, message in (("[", "not YAML"), ("- a", "expected keys")):
        path = write(raw)
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            Experiment.load(path)
    with pytest.raises(ConfigError, match="no experiment file"):
        Experiment.load(Path("absent.yaml"))


def test_paths_are_relative_to_the_file(raw: dict, tmp_path: Path) -> None:
    experiment = load(raw)
    assert experiment.base == Path("config.yaml")
    assert experiment.runs_dir("a | pipe") == Path("runs/ablate/rewards")
    assert experiment.results_dir == Path("grids/results/rewards")
    elsewhere = load({**raw, "runs": "here", "results": str(tmp_path.parent)})
    assert elsewhere.runs_dir("a | pipe") == Path("grids/here/rewards")
    assert elsewhere.results_dir == tmp_path.parent / "rewards"


def test_experiments_of_the_repository_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in Path("experiments").rglob("*.yaml"):
        if "\narms:" in path.read_text():
            plan(Experiment.load(path))


def test_the_example_of_the_documentation_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/ablations.md").read_text()
    example = "name: terms" + page.partition("name: terms")[2].partition("```")[0]
    path = tmp_path / "terms.yaml"
    path.write_text(example.replace("../quickstart", str(ROOT / "experiments" / "quickstart")))
    experiment = Experiment.load(path)
    assert len(plan(experiment)) == len(experiment.arms) * 3


# The runs


def test_runs_are_arms_times_seeds(raw: dict) -> None:
    runs = plan(load(raw))
    assert [run.label for run in runs[:3]] == [
        "log-ratio, H 1, seed 0",
        "log-ratio, H 1, seed 1",
        "a | pipe, seed 0",
    ]
    run = runs[1]
    assert run.folder == Path("runs/ablate/rewards/log-ratio-h-1/seed_1")
    assert (run.config.run.seed, run.config.run.steps, run.config.reward.horizon) == (1, 2, 1)
    assert run.config.run.name == "rewards, log-ratio, H 1, seed 1"
    assert len({run.config.digest() for run in runs}) == 6
    assert [r.arm for r in select(load(raw), runs, ["a | pipe"])] == ["a | pipe"] * 2
    with pytest.raises(ConfigError, match=r"--only: no arm 'pipe'; did you mean `a \| pipe`"):
        select(load(raw), runs, ["pipe"])


def test_overrides_arrive_as_they_are_written(raw: dict) -> None:
    raw["set"] |= {"optim.lr": 1e-5, "reward.shadows": ["logprob"], "model.think_open": "a: 'b'"}
    raw["set"]["reward.scheme"] = {"mean_prob": 0.9, "format_only": 0.1}
    config = plan(load(raw))[0].config
    assert config.optim.lr == 1e-5
    assert config.reward.shadows == ("logprob",)
    assert config.reward.weights == {"mean_prob": 0.9, "format_only": 0.1}
    assert config.model.think_open == "a: 'b'"


def test_every_arm_with_a_mistake_is_named(raw: dict) -> None:
    raw["arms"] |= {
        "typo": {"reward.horizonn": 1},
        "unknown": {"reward.scheme": "nothing"},
        "one": {"thought.thoughts_per_position": 1},
        "same": {"thought.thoughts_per_position": 1},
    }
    with pytest.raises(ConfigError) as caught:
        plan(load(raw))
    told = str(caught.value)
    assert "typo:\n" in told
    assert "did you mean `reward.horizon`?" in told
    assert "there is no reward scheme 'nothing'" in told
    assert "one; same:\n" in told
    assert told.count("a group of one thought") == 1


def test_columns_of_an_evaluation_that_is_off(raw: dict) -> None:
    raw["set"] |= {"evaluation.docs": 0}
    with pytest.raises(ConfigError, match=r"evaluation\.docs is 0 in every arm"):
        plan(load(raw))


def test_a_run_is_finished_with_its_last_evaluation_and_its_own_config(raw: dict) -> None:
    runs = plan(load(raw))
    assert state(runs[0]) == "new"
    fake(runs[0], 0.5)
    assert state(runs[0]) == "finished"
    (runs[0].folder / "eval" / "step_00000002.json").unlink()
    assert state(runs[0]) == "begun"
    fake(runs[1], 0.5)
    raw["set"] |= {"optim.lr": 0.5}
    assert state(plan(load(raw))[1]) == "begun"
    raw["set"] = {"run.steps": 3}
    assert state(plan(load(raw))[1]) == "begun"


def test_without_an_evaluation_the_steps_decide(raw: dict) -> None:
    raw["set"] |= {"evaluation.docs": 0}
    raw["columns"] = {"length": {"metrics": "thought/tokens_mean", "last": 1}}
    raw["plot"], raw["reference"] = None, None
    run = plan(load(raw))[0]
    fake(run, 0.5)
    assert state(run) == "finished"
    (run.folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert state(run) == "begun"


def test_folders_and_corpora_are_checked_before_the_start(raw: dict, tmp_path: Path) -> None:
    runs = plan(load(raw))
    check_start(runs, resume=False)
    fake(runs[0], 0.5)
    with pytest.raises(ConfigError, match=r"--resume, or delete them:\n  runs/ablate/.*/seed_0"):
        check_start(runs, resume=False)
    check_start(runs[2:], resume=False)  # another arm's runs are no matter
    with pytest.raises(DataError, match="trained on another corpus"):
        check_start(runs, resume=True)  # the made-up manifest's digest is not the corpus'
    raw["set"] |= {"optim.lr": 0.5}
    with pytest.raises(
        ConfigError, match=r"log-ratio, H 1:\n.*\n +optim.lr: 0.001 there, 0.5 here"
    ) as e:
        check_start(plan(load(raw)), resume=True)
    assert "a | pipe" not in str(e.value)
    raw["set"] |= {"data.source": str(tmp_path / "absent")}
    with pytest.raises(DataError, match=r"a \| pipe; no thoughts:\n +there is no corpus folder"):
        check_start(plan(load(raw))[2:], resume=True)


# The numbers


def test_paths_take_the_longest_key_that_leads_somewhere() -> None:
    tree = {"nll/think": 1, "nll": {"think": 2, "no_think": 3}, "a": {"b/c": 4}, "a/b": {"d": 5}}
    assert lookup(tree, "nll/think") == 1
    assert lookup(tree, "nll/no_think") == 3
    assert lookup(tree, "a/b/c") == 4  # "a/b" is there, and has no "c"
    assert lookup(tree, "a/b/d") == 5
    assert lookup({"deciles": [{"gain": 1}, {"gain": 2}]}, "deciles/1/gain") == 2
    for absent in ("a", "nll", "a/b/c/d", "x", ""):
        assert lookup(tree, absent) is None
    assert lookup({"a": None, "b": "text"}, "a") is None
    assert lookup({"a": None, "b": "text"}, "b") is None
    assert list(leaves(tree)) == ["nll/think", "nll/think", "nll/no_think", "a/b/c", "a/b/d"]


def test_summary() -> None:
    found = summarize([1.0, 2.0, 6.0])
    assert found is not None
    assert (found.mean, found.n, found.lowest, found.highest) == (3.0, 3, 1.0, 6.0)
    assert found.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert summarize([]) is None
    single = summarize([2.0])
    assert single is not None
    assert single.sd is None


def test_differences_are_paired_by_seed() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 2: 4.5, 9: 100.0}, {0: 0.0, 1: 1.5, 2: 3.0})
    assert found is not None
    assert (found.mean, found.n) == (1.0, 3)
    # t(0.975, 2) = 4.303, sd of (1, 0.5, 1.5) = 0.5
    assert found.ci95 == pytest.approx((1 - 4.303 * 0.5 / 3**0.5, 1 + 4.303 * 0.5 / 3**0.5))
    single = paired_difference({0: 1.0}, {0: 0.5})
    assert single is not None
    assert (single.mean, single.ci95) == (0.5, None)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_student_t() -> None:
    # 1 degree of freedom is Cauchy, whose quantile is tan; 2 has a closed form, too.
    assert t_975(1) == pytest.approx(math.tan(math.pi * 0.475), abs=5e-4)
    assert t_975(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=5e-4)
    table = [t_975(freedom) for freedom in range(1, 31)]
    assert table == sorted(table, reverse=True)
    assert t_975(30) == t_975(1000) == 2.042


def test_curves() -> None:
    curve = [(1, 1.0), (2, 3.0), (3, 5.0), (4, 100.0)]
    assert running_mean(curve, 2) == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 52.5)]
    assert band([[(1, 1.0), (2, 2.0)], [(2, 4.0), (3, 9.0)]]) == [(2, 3.0, 2.0, 4.0)]
    assert band([]) == []


# The table


def finished_grid(raw: dict) -> Experiment:
    """Two of two seeds of the first arm, one of two of the second, a control that never thinks."""
    experiment = load(raw)
    runs = plan(experiment)
    for run, gain in zip(runs, (0.5, 0.7, 0.4, None, None, None), strict=True):
        if run is not runs[3]:
            fake(run, gain)
    runs[3].folder.mkdir(parents=True)
    end = {"started": "2026-01-01T00:00:00Z", "ended": "2026-01-01T00:01:00Z", "wall_s": 60.0}
    starts = {**end, "exit_code": 6, "load_average": [0.5, 2.25]}
    runs[3].starts.write_text(json.dumps(starts) + "\n")
    return experiment


def first_table(text: str) -> dict[str, list[str]]:
    """Cells of the rows of the first table in a Markdown text, by their first cell."""
    lines = [line for line in text.partition("##")[0].splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_table(raw: dict) -> None:
    experiment = finished_grid(raw)
    results = tabulate(experiment)
    folder = Path("grids/results/rewards")
    assert json.loads((folder / "table.json").read_text()) == results
    text = (folder / "table.md").read_text()
    table = first_table(text)
    assert table["arm"][:3] == ["seeds", "gain, nats", "hardest"]
    assert table["log-ratio, H 1"] == [
        "2",
        "+0.600 [+0.500, +0.700]",
        "20.5 [20.0, 21.0]",
        "−0.25 [−0.25, −0.25]",
        "3.000 [3.000, 3.000]",
        "300 [300, 300]",
        "6.000 [6.000, 6.000]",
        "reference",
    ]
    assert table["a \\| pipe"][0] == "1 of 2: seed 1 failed (exit code 6)"
    assert table["a \\| pipe"][1] == "+0.400"
    assert table["a \\| pipe"][-1] == "−0.100"
    assert table["no thoughts (control)"][0] == "2"
    assert table["no thoughts (control)"][1] == "–"
    assert table["no thoughts (control)"][-2:] == ["–", "–"]
    assert "**Which reward finds the gain?**" in text
    assert "paired by seed" in text
    assert "cccccccccccc + changes" in text
    assert "cpu (fast)" in text
    assert "0.5 to 2.25" in text
    assert "| `reward.scheme=logprob` |" in text
    assert "- length: `thought/tokens_mean` in training, mean over the last 1 steps" in text
    assert "What was found" not in text

    arm = results["arms"][0]
    assert arm["columns"]["gain, nats"]["sd"] == pytest.approx(0.2 / math.sqrt(2))
    assert [run["values"]["gain, nats"] for run in arm["runs"]] == [0.5, 0.7]
    command = arm["runs"][0]["command"]
    assert command.startswith(
        "rntp train config.yaml '--set=run.name=rewards, log-ratio, H 1, seed"
    )
    assert "--set=reward.horizon=1 --set=run.seed=0 --run-dir runs/ablate/rewards/" in command
    assert results["arms"][1]["difference"] == {"mean": pytest.approx(-0.1), "ci95": None, "n": 1}


def test_a_number_that_some_seeds_lack_says_how_many_have_it(raw: dict) -> None:
    experiment = load(raw)
    for run, gain in zip(plan(experiment), (0.5, None, 0.25, 0.75), strict=False):
        fake(run, gain)
    tabulate(experiment)
    table = first_table((experiment.results_dir / "table.md").read_text())
    assert table["log-ratio, H 1"][:2] == ["2", "+0.500 (n 1)"]
    assert table["a \\| pipe"][:2] == ["2", "+0.500 [+0.250, +0.750]"]
    assert table["a \\| pipe"][-1] == "−0.250"  # seed 0 alone is paired
    assert table["no thoughts (control)"][0] == "0 of 2: seed 0 not run, seed 1 not run"


def test_a_finding_is_taken_over_and_kept(raw: dict) -> None:
    experiment = finished_grid(raw)
    finding = experiment.results_dir / "finding.md"
    finding.parent.mkdir(parents=True)
    finding.write_text("Nothing, *yet*: a | b.\n")
    tabulate(experiment)
    assert (
        "## What was found\n\nNothing, *yet*: a | b.\n"
        in (experiment.results_dir / "table.md").read_text()
    )
    assert finding.read_text() == "Nothing, *yet*: a | b.\n"


def test_a_column_that_no_run_has_names_the_near_keys(raw: dict) -> None:
    raw["columns"] |= {
        "typo": {"eval": "gain/meen"},
        "group": {"eval": "deciles/0"},
        "metric": {"metrics": "thought/token_mean", "last": 2},
    }
    raw["plot"]["curve"] = "gain/meam"
    experiment = finished_grid(raw)
    with pytest.raises(ConfigError) as caught:
        tabulate(experiment)
    told = str(caught.value)
    assert "'typo': no number at 'gain/meen'; near: gain/mean" in told
    assert "'group': no number at 'deciles/0'; near: deciles/0/decile, deciles/0/gain" in told
    assert "'metric': no number at 'thought/token_mean'; near: thought/tokens_mean" in told
    assert "plot.curve: no metric 'gain/meam'; near: gain/mean" in told
    assert not (experiment.results_dir / "table.md").exists()

    raw["arms"]["still to come"] = {"optim.lr": 0.5}
    tabulate(load(raw))
    assert (experiment.results_dir / "table.md").exists()


def test_the_first_finished_run_warns_of_columns(
    raw: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    raw["columns"]["typo"] = {"metrics": "tokens/thougt", "last": 1}
    finished_grid(raw)
    experiment = load(raw)
    warner = ColumnWarner(experiment, Console(stderr=True, width=300))
    for run in plan(experiment):
        warner(run)
    told = capsys.readouterr().err
    assert told.count("warning") == 1
    assert "the first finished run (log-ratio, H 1, seed 0) lacks columns" in told
    assert "'typo': no number at 'tokens/thougt'; near: tokens/thought" in told


def test_the_board_shows_how_far_the_runs_are(raw: dict) -> None:
    raw["arms"] = {"[bold]lr[/bold]": {}, "other": {}}
    raw |= {"controls": [], "reference": None, "set": {"run.steps": 4}}
    runs = plan(load(raw))
    screen = StringIO()
    console = Console(file=screen, force_terminal=True, width=200, no_color=True)
    with Board(console, runs) as board:
        board.started(runs[0])
        fake(runs[0], 0.5, steps=2)
        board.refresh(runs[:1])
        board.ended(Ended(runs[0], 0, 75.0), stopped=False)
        board.started(runs[2])
        board.ended(Ended(runs[2], 6, 3.0), stopped=False)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "start 1/4  [bold]lr[/bold], seed 0" in text
    assert "done 1/4  [bold]lr[/bold], seed 0  1m15s  eta " in text
    assert f"FAILED  other, seed 0  exit code 6 after 3s; {runs[2].log}" in text


def test_the_table_shows_no_secret(raw: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2hunter2")
    raw["question"] = "Does hunter2hunter2 leak?"
    tabulate(finished_grid(raw))
    for path in Path("grids/results/rewards").iterdir():
        assert b"hunter2hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize(
    "plot",
    [
        {"y": "gain, nats"},
        {"y": "gain, nats", "curve": "gain/mean"},
        {"y": "gain, nats", "x": {"log-ratio, H 1": 1, "a | pipe": 8}, "x_scale": "log"},
        {
            "y": "tokens",
            "x": {"a | pipe": 8, "no thoughts": 2},
            "x_label": "$H",
            "curve": "gain/mean",
        },
    ],
)
def test_plots_are_drawn_and_depend_on_the_numbers_alone(raw: dict, plot: dict) -> None:
    experiment = finished_grid({**raw, "plot": plot})
    tabulate(experiment)
    first = [(experiment.results_dir / f"plot.{e}").read_bytes() for e in ("svg", "png")]
    assert first[0].startswith(b"<?xml")
    assert first[1].startswith(b"\x89PNG")
    tabulate(experiment)
    again = [(experiment.results_dir / f"plot.{e}").read_bytes() for e in ("svg", "png")]
    assert again == first


def test_matplotlib_is_asked_for_only_by_a_plot(raw: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = finished_grid(raw)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'rntp\[ablate\]'"):
        tabulate(experiment)
    tabulate(load({**raw, "plot": None, "reference": None}))


def test_only_the_plot_imports_matplotlib() -> None:
    files = [p for p in (ROOT / "rntp").rglob("*.py") if "import matplotlib" in p.read_text()]
    assert [path.name for path in files] == ["plot.py"]


def test_commands(raw: dict, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: object) -> int:
        try:
            main(["ablate", str(path), *map(str, arguments)])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    path = write(raw)
    assert call("--table") == 2
    assert "run the grid first" in capsys.readouterr().err
    finished_grid(raw)
    assert call("--dry-run") == 0
    out = capsys.readouterr().out
    assert "6 runs, 5 finished, 2 steps in the others" in out
    assert not Path("grids/results").exists()
    assert call("--dry-run", "--json", "--only", "no thoughts") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in facts["runs"]] == ["finished"] * 2
    assert call("--table") == 0
    out = capsys.readouterr().out
    assert out.endswith("table: grids/results/rewards/table.md\n")
    assert "no thoughts (control)" in out
    assert call("--table", "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "rewards"
    assert call("--jobs", 0) == 2
    assert call("--only", "nothing", "--resume") == 2
    assert call() == 2
    assert "these runs exist; go on with --resume" in capsys.readouterr().err


def test_what_a_column_means() -> None:
    assert Column(metrics="a", sum=True).meaning == "`a` in training, sum over all steps"
    assert Column(change="a/b").meaning == "`a/b` of the evaluation, change by training"
    assert Column(change="a").shows_sign
