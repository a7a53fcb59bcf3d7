# ruff: noqa: F811
"""The page of a grid: what a reader finds on it, and that no text of a run becomes part of it."""

import base64
import importlib.util
import json
from pathlib import Path

import pytest
from html_page import Page
from test_ablate import fake, finished_grid, load, raw  # noqa: F401

from rntp.ablate import tabulate
from rntp.ablate.grid import plan

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(2)>"


def thought(advantage: float, text: str) -> dict:
    return {
        "document_id": "page-1",
        "position": 9,
        "prefix_tail": "Once upon",
        "continuation_tokens": [" a", " time"],
        "gain_per_token": [0.5, -0.25],
        "thought": text,
        "answer": "",
        "closed": True,
        "num_tokens": 3,
        "advantage": advantage,
        "reward": 0.125,
        "gain": 0.25,
        "rewards": {"log_ratio": 0.125},
    }


def write_thoughts(folder: Path, *rows: dict) -> None:
    (folder / "rollouts").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rollouts" / "step_00000002.jsonl").write_text(text)


def made(raw: dict, finding: str | None = None) -> str:
    folder = Path("grids/results/rewards")
    if finding is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "finding.md").write_text(finding)
    tabulate(load(raw))
    return (folder / "index.html").read_text()


def test_the_page_has_question_table_finding_thoughts_and_provenance(raw: dict) -> None:
    grid = finished_grid(raw)
    best, worst = thought(1.5, "a friend called"), thought(-2.0, "nothing at all")
    write_thoughts(plan(grid)[0].folder, worst, best)
    html = made(raw, "It **helps**.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    page = Page(html)
    assert "Which reward finds the gain?" in page.text
    # The cells of table.md, escaped anew.
    cells = ["+0.600 [+0.500, +0.700]", "20.5 [20.0, 21.0]", "−0.25 [−0.25, −0.25]", "reference"]
    for cell in [
        *cells,
        "a | pipe",
        "no thoughts (control)",
        "1 of 2: seed 1 failed (exit code 6)",
    ]:
        assert cell in page.text
    assert "paired by seed" in page.text
    assert "<strong>helps</strong>" in html
    assert "<td>1</td>" in html
    assert page.text.index("a friend called") < page.text.index("nothing at all")
    assert "log-ratio, H 1 seed 0, step 2" in page.text
    assert "cccccccccccc + changes" in page.text
    assert "length: thought/tokens_mean in training, mean over the last 1 steps" in page.text
    assert page.attributes.count(("meta", "name", "referrer")) == 1


def test_the_page_is_one_file_that_loads_and_runs_nothing(raw: dict) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("the plot needs matplotlib")
    finished_grid(raw)
    html = made(raw)
    page = Page(html)
    assert page.only_its_own_script_runs()
    assert not {"link", "iframe", "object", "form", "base"} & set(page.tags)
    [source] = page.values("src")
    kind, _, content = source.partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(content) == Path("grids/results/rewards/plot.svg").read_bytes()
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("href")) <= {f"#{i}" for i in ids}
    # Nothing of what there is nothing to say of.
    assert "What was found" not in page.text
    assert "Thoughts of the last step" not in page.text


def test_hostile_text_stays_text(raw: dict) -> None:
    raw["question"] = raw["arms"][EVIL] = EVIL
    raw["arms"][EVIL] = {"run.name": EVIL}
    raw["plot"] = raw["reference"] = None
    grid = load(raw)
    runs = plan(grid)
    fake(runs[0], 0.5)
    write_thoughts(runs[0].folder, {**thought(1.0, EVIL), "prefix_tail": EVIL})
    finding = f"{EVIL}\n\n[x](javascript:alert(3)) ![y](http://example.org/z.png)\n"
    html = made(raw, finding)
    page = Page(html)
    assert "img" not in page.tags
    assert page.only_its_own_script_runs()
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(EVIL) >= 4  # question, arm, thought and finding
    assert "javascript:" not in "".join(page.values("href"))
    assert page.values("src") == []


def test_tick_labels_do_not_touch() -> None:
    pytest.importorskip("matplotlib")
    from rntp.ablate.plot import apart

    assert apart([], 4) == set()
    assert apart([(0, 10)], 4) == {0}
    assert apart([(0, 10), (20, 30), (40, 50)], 4) == {0, 1, 2}
    # 0, 0.001 and 0.002 lie over one another; the last is kept before the one beside it.
    assert apart([(0, 10), (1, 30), (2, 32), (60, 80), (70, 90), (100, 110)], 4) == {0, 3, 5}
    assert apart([(0, 10), (3, 13)], 4) == {0}
    assert apart([(0, 10), (90, 105), (100, 110)], 4) == {0, 2}


def test_close_values_are_drawn_with_labels_apart(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from rntp.ablate.plot import _thin_labels

    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    values = [0.0, 0.001, 0.002, 0.5, 0.51, 1.0]
    axes.plot(values, values)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    limits = axes.get_xlim()
    _thin_labels(figure, axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "", "", "0.5", "", "1"]
    assert list(axes.get_xticks()) == values
    assert axes.get_xlim() == limits
