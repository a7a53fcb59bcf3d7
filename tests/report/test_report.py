import json
import math
import sys
import types
from pathlib import Path

import pytest
from fake_run import PROSE, fake_compare, fake_run, tokens_of
from html_page import Page

from rntp.errors import ConfigError, DataError
from rntp.report import build_report
from rntp.report.effect import effect_of
from rntp.report.page import render
from rntp.report.runs import RunData, load_runs
from rntp.report.texts import scale_bound, shade, text_sections
from rntp.report.thoughts import training_thoughts

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\"' onmouseover='alert(3)'"
CANARY = "canary-77aa01c3f5d8"


def page_of(*run_dirs: Path) -> Page:
    return Page(render(load_runs(run_dirs), fake_compare))


def one_run(run_dir: Path) -> RunData:
    return load_runs([run_dir])[0]


@pytest.fixture
def evaluation_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one would bring the model stack into these tests."""
    module = types.ModuleType("rntp.evaluation")
    module.compare = fake_compare  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rntp.evaluation", module)


@pytest.mark.usefixtures("evaluation_module")
def test_the_report_is_one_file_that_needs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert build_report([fake_run(tmp_path / "run")], out) == out
    html = out.read_text(encoding="utf-8")
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    assert page.only_its_own_script_runs()
    assert [kind for kind, _ in page.scripts] == ["application/json", ""]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(href.startswith("#") for href in page.values("href"))
    assert "src" not in {name for _, name, _ in page.attributes}
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert len(html) < 700_000


def test_every_link_has_its_target_and_every_panel_its_link(tmp_path: Path) -> None:
    page = page_of(fake_run(tmp_path / "a"), fake_run(tmp_path / "b", name="other"))
    ids, links = page.values("id"), set(page.values("href"))
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    panels = [i for i in ids if i.startswith("r") and not i.endswith("t")]
    assert len(panels) == 2 * 3 * 4
    assert {f"#{panel}" for panel in panels} <= links


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = fake_run(
        tmp_path / "run",
        name=EVIL,
        text=f"{PROSE} {EVIL} {PROSE} {EVIL}",
        thought=f"{EVIL} \x00 \ud800 \u202e",
        document_id=f"{EVIL}-doc",
    )
    harmless = page_of(fake_run(tmp_path / "harmless"))
    hostile = page_of(run)
    assert set(hostile.tags) == set(harmless.tags)
    assert hostile.scripts[1:] == harmless.scripts[1:]
    assert hostile.only_its_own_script_runs()
    data = json.loads(hostile.scripts[0][1])
    assert EVIL in data["thoughts"][0]["text"]
    assert not set("<>&") & set(hostile.scripts[0][1])
    assert {name for _, name, _ in hostile.attributes} == {n for _, n, _ in harmless.attributes}
    assert hostile.style == harmless.style
    assert EVIL in hostile.text
    assert f"{EVIL}-doc-0" in hostile.text


def test_hostile_tokens_reach_no_attribute_unescaped(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", name='x" onload="alert(1)', text="a \"b\" <c> 'd' " * 60)
    html = render(load_runs([run]), fake_compare)
    assert 'onload="' not in html
    assert "<c>" not in html
    assert "&lt;c&gt;" in html


@pytest.mark.usefixtures("evaluation_module")
def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", thought="half of a pair: \ud83d.")
    out = build_report([run], tmp_path / "report.html")
    assert "half of a pair: ?." in out.read_text(encoding="utf-8")


@pytest.mark.usefixtures("evaluation_module")
def test_secrets_do_not_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake_run(tmp_path / "run", name=f"n {CANARY}", thought=CANARY, document_id=CANARY)
    monkeypatch.setenv("SERVICE_SECRET", CANARY)
    html = build_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert CANARY not in html
    assert "[redacted]" in html


def test_facts_name_what_ran(tmp_path: Path) -> None:
    text = page_of(fake_run(tmp_path / "run", seed=11)).text
    for fact in (
        "24 of 24, 1 skipped",
        "11",
        "package:smollm2-135m",
        "0123456789ab + changes",
        "d1d1d1d1d1d1d1d1",
        "cpu (4 cores)",
        "2026-03-01T09:00:00Z",
        "log_ratio",
    ):
        assert fact in text


def test_four_cells_and_what_they_show(tmp_path: Path) -> None:
    effect = effect_of(one_run(fake_run(tmp_path / "run")), fake_compare)
    before, after, change = effect.rows
    assert (before.no_think, before.think, before.gain) == ("3.100", "3.320", "−0.220")
    assert (after.no_think, after.think, after.gain) == ("3.060", "3.040", "+0.020")
    assert (change.gain, change.gain_ci) == ("+0.240", "+0.210 to +0.270")
    told = " ".join(effect.sentences)
    assert "Before training, thinking first raises the loss" in told
    assert "no effect of thinking on the loss is shown" in told
    assert "−0.030 to +0.070, includes 0" in told
    assert "Training raised the gain from thinking by 0.240" in told
    assert "Training lowered the loss without a thought by 0.040" in told
    assert "trained model's loss (3.040) is below that of the untrained model" in told
    assert "16 held-out documents, 512 continuation tokens, horizon 8" in told


def test_a_change_whose_interval_includes_zero_is_no_claim(tmp_path: Path) -> None:
    def nothing(before: dict, after: dict) -> dict:
        change = fake_compare(before, after)
        change["gain/mean"]["ci95"] = [-0.1, 0.5]
        return change

    effect = effect_of(one_run(fake_run(tmp_path / "run")), nothing)
    told = " ".join(effect.sentences)
    assert "Training is not shown to have changed the gain from thinking: +0.240" in told
    assert "Training raised the gain" not in told


def test_a_gain_over_a_worsened_baseline_is_not_praised(tmp_path: Path) -> None:
    run = one_run(fake_run(tmp_path / "run"))
    run.evaluations[-1].update({"nll/no_think": 3.9, "nll/think": 3.5, "gain/mean": 0.4})
    run.evaluations[-1]["gain/ci95"] = [0.3, 0.5]
    told = " ".join(effect_of(run, fake_compare).sentences)
    assert "thinking first lowers the loss of the held-out continuation by 0.400" in told
    assert "Training raised the loss without a thought by 0.800" in told
    assert "(3.500) is not below that of the untrained model without one (3.100)" in told


def test_evaluations_that_do_not_fit_are_said_not_to(tmp_path: Path) -> None:
    def refuse(before: dict, after: dict) -> dict:
        raise DataError("they read different documents")

    effect = effect_of(one_run(fake_run(tmp_path / "run")), refuse)
    assert effect.sentences == [
        "The two evaluations cannot be compared: they read different documents."
    ]
    assert [row.name for row in effect.rows] == ["before training", "after 24 steps"]


@pytest.mark.parametrize(
    ("evaluated", "told"),
    [
        ((), "This run has no evaluation yet."),
        ((0,), "There is no evaluation after training yet"),
        ((24,), "The model was not evaluated before training"),
    ],
)
def test_missing_evaluations_are_a_sentence(
    tmp_path: Path, evaluated: tuple[int, ...], told: str
) -> None:
    page = page_of(fake_run(tmp_path / "run", evaluated=evaluated))
    assert told in page.text
    assert ("No evaluated text yet." in page.text) == (not evaluated)


def test_zero_steps_are_a_sentence(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", steps=1, evaluated=())
    (run / "metrics.jsonl").unlink()
    for path in (run / "rollouts").iterdir():
        path.unlink()
    text = page_of(run).text
    assert "No step is done yet" in text
    assert "No thought of training is written down yet." in text
    assert "0 of 1" in text


def test_nulls_in_an_evaluation_are_dashes(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    path = run / "eval" / "step_00000024.json"
    evaluation = json.loads(path.read_text())
    evaluation.update({"nll/think": None, "gain/mean": None, "gain/ci95": [None, None]})
    evaluation["thought/closed_frac"] = None
    evaluation["deciles"][3]["gain"] = None
    evaluation["pages"][0]["positions"][0]["thoughts"][0]["logp_think"][2] = None
    path.write_text(json.dumps(evaluation))

    def with_nulls(before: dict, after: dict) -> dict:
        nothing = {"before": 3.1, "after": None, "change": None, "ci95": [None, None]}
        change = fake_compare(before, before)
        return {**change, "nll/think": nothing, "gain/mean": nothing}

    effect = effect_of(one_run(run), with_nulls)
    assert effect.rows[1].gain == "–"
    assert effect.rows[2].think_ci == "–"
    assert "not measured or is not finite" in " ".join(effect.sentences)
    assert "after-none" in render(load_runs([run]), with_nulls)


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_folder_that_is_no_run_names_what_is_missing(tmp_path: Path, name: str) -> None:
    run = fake_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(ConfigError, match=f"no run folder: it has no {name}"):
        load_runs([run])


def test_other_paths_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match=r"no config\.yaml and no manifest\.json"):
        load_runs([tmp_path])
    with pytest.raises(ConfigError, match="at least one run folder"):
        load_runs([])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    (run / "eval" / "step_00000024.json").write_text('{"step": 24, ')
    with pytest.raises(ConfigError, match=r"step_00000024\.json is not JSON"):
        load_runs([run])


def test_shades_go_from_harm_to_help() -> None:
    gains = [-9.0, -1.0, -0.3, -0.05, 0.0, 0.11, 0.5, 1.0, 9.0]
    assert [shade(g, 1.0) for g in gains] == ["n5", "n5", "n2", "z", "z", "p1", "p2", "p5", "p5"]
    assert shade(None, 1.0) == "none"


def test_the_scale_is_round_and_above_most_gains() -> None:
    assert scale_bound([0.1] * 95 + [9.0] * 5) == pytest.approx(0.1)
    assert scale_bound([-0.31, 0.02, None]) == pytest.approx(0.5)
    assert scale_bound([]) == 1.0
    assert scale_bound([0.0, None]) == 1.0


def test_each_continuation_token_has_the_mean_gain_of_its_thoughts(tmp_path: Path) -> None:
    run = one_run(fake_run(tmp_path / "run", docs=1))
    page = run.evaluations[-1]["pages"][0]
    first = page["positions"][0]
    first["logp_empty"] = [-2.0] * 8
    for thought, gain in zip(first["thoughts"], (1.5, 0.5), strict=True):
        thought["logp_think"] = [-2.0 + gain] * 8
    (section,), bound = text_sections([run])
    (context,) = section.contexts
    tokens = [piece for piece in context.pieces if piece.kind == "token"][:8]
    assert [piece.text for piece in tokens] == page["tokens"][first["position"] :][:8]
    assert {piece.css.split()[0] for piece in tokens} == {f"after-{shade(1.0, bound)}"}
    assert "+1.000 after training" in tokens[0].title
    before, after = context.positions[0].sides
    assert (before.name, after.name, after.gain) == ("before", "after", "+1.000")
    assert [thought.gain for thought in after.thoughts] == ["+1.500", "+0.500"]
    assert after.thoughts[1].ending == "cut off at the limit"


def test_overlapping_continuations_show_each_token_once(tmp_path: Path) -> None:
    run = one_run(fake_run(tmp_path / "run", docs=1))
    for evaluation in run.evaluations:
        places = evaluation["pages"][0]["positions"]
        for place, position in zip(places, (40, 43, 50, 110), strict=True):
            place["position"] = position
    (section,), _ = text_sections([run])
    pieces = section.contexts[0].pieces
    assert [piece.text for piece in pieces if piece.kind == "mark"] == ["1", "2", "3", "4"]
    shown = "".join(piece.text for piece in pieces if piece.kind in ("plain", "token"))
    assert shown.replace("↵", "") == "".join(tokens_of(PROSE))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", docs=11, thought="word " * 1000, text=PROSE * 10)
    page = page_of(run)
    assert "3 more contexts are in eval/" in page.text
    assert "[3,000 more characters]" in page.text
    assert "10 more thoughts of this step are in rollouts/." in page.text
    assert " tokens ⋯" in page.text


def test_a_large_run_makes_no_large_page(tmp_path: Path) -> None:
    run = one_run(fake_run(tmp_path / "run", docs=30, thought="x " * 5000, text=PROSE * 20))
    for evaluation in run.evaluations:
        for page in evaluation["pages"]:
            for place in page["positions"]:
                place["thoughts"] *= 8
    html = render([run], fake_compare)
    assert len(html) < 4_000_000
    assert "thoughts past the first 4 of a position" in html


def test_best_and_worst_thoughts_of_the_first_and_last_step(tmp_path: Path) -> None:
    run = one_run(fake_run(tmp_path / "run"))
    first, last = training_thoughts(run, 1.0)
    assert (first.step, last.step) == (1, 24)
    assert [row.rank for row in first.rows] == ["best"] * 3 + ["worst"] * 3
    advantages = sorted((row["advantage"] for row in run.thoughts[0][1]), reverse=True)
    assert first.rows[0].advantage == f"{advantages[0]:+.3f}".replace("-", "−")
    assert first.rows[5].advantage == f"{advantages[-1]:+.3f}".replace("-", "−")
    assert first.left_out == 10


def test_few_thoughts_are_shown_once_each(tmp_path: Path) -> None:
    run = one_run(fake_run(tmp_path / "run", steps=1))
    ((step, rows),) = run.thoughts
    for count, ranks in ((0, []), (1, ["best"]), (3, ["best", "best", "worst"])):
        run.thoughts[0] = (step, rows[:count])
        assert [row.rank for row in training_thoughts(run, 1.0)[0].rows] == ranks
    rows[0]["advantage"] = None
    run.thoughts[0] = (step, rows[:1])
    assert training_thoughts(run, 1.0)[0].rows == []


def test_several_runs_lie_over_one_another(tmp_path: Path) -> None:
    runs = [
        fake_run(tmp_path / "a", name="same", seed=1),
        fake_run(tmp_path / "b", name="same", seed=2, evaluated=(0, 12, 24)),
    ]
    loaded = load_runs(runs)
    assert [run.label for run in loaded] == [f"same ({run})" for run in runs]
    page = page_of(*runs)
    assert "Held-out gain during training" in page.text
    assert page.text.count("context 40,") == 2
    assert page.text.count(f"same ({runs[1]}): think") == 1


def test_a_half_written_metrics_line_and_gaps_do_no_harm(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 25, "rew')
    loaded = one_run(run)
    assert len(loaded.metrics) == 24
    assert loaded.metrics[6]["reward/mean"] is None
    assert not math.isnan(sum(row["time/step_s"] for row in loaded.metrics))
    assert "24 of 24" in page_of(run).text
