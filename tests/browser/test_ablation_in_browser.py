"""The page of a grid in a real browser, made of committed results and invented thoughts."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_run import fake_run

from rntp.ablate.page import page as grid_page

pytestmark = pytest.mark.browser

RESULTS = Path(__file__).parents[2] / "experiments" / "methods" / "results" / "methods"
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    results = json.loads((RESULTS / "table.json").read_text(encoding="utf-8"))
    arms = [arm["name"] for arm in results["arms"]][:3]
    records: Any = [
        SimpleNamespace(
            run=SimpleNamespace(arm=arm, seed=0, folder=fake_run(folder / str(n), steps=2, seed=n))
        )
        for n, arm in enumerate(arms)
    ]
    finding = (RESULTS / "finding.md").read_text(encoding="utf-8")
    html = grid_page(results, finding, (RESULTS / "plot.svg").read_bytes(), records)
    (folder / "index.html").write_text(html, encoding="utf-8")
    return folder / "index.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1400])
def test_it_opens_quietly_fits_and_can_be_read(
    visit: Callable[..., Any], ablation: Path, width: int, scheme: str
) -> None:
    opened = visit(ablation, width, scheme)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    # The picture comes in the file; its letters stay large enough on a telephone.
    assert [url for url in opened.requests if not url.startswith("data:")] == [ablation.as_uri()]
    assert page.locator("img.plot").evaluate("e => e.naturalWidth") > 0
    assert page.locator("img.plot").bounding_box()["width"] > 700
    contrast = page.evaluate(CONTRAST)
    assert contrast["seen"] > 200
    assert contrast["worst"][0] >= 4.5, contrast["worst"]
    assert opened.errors == []


def test_thoughts_are_filtered_by_arm(visit: Callable[..., Any], ablation: Path) -> None:
    page = visit(ablation).page
    assert page.locator("#f-count").inner_text() == "48 of 48 thoughts"
    arm = page.locator("#f-source option").nth(2).inner_text()
    page.locator("#f-source").select_option(label=arm)
    page.wait_for_timeout(150)
    assert page.locator("#f-count").inner_text() == "16 of 48 thoughts"
    assert set(page.locator("#thought-rows .t-source").all_inner_texts()) == {arm}
    assert page.locator(".steps").count() == 0
