"""The documentation in a real browser: search finds a metric, pages fit, nothing is fetched."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, built from the pages as they are."""
    pytest.importorskip("zensical", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    config = (ROOT / "mkdocs.yml").read_text()
    paths = f"[{ROOT}, {ROOT / 'kernels'}, {ROOT / 'data_prep'}]"
    (folder / "mkdocs.yml").write_text(config.replace("[., kernels, data_prep]", paths))
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    handler = partial(Quiet, directory=str(folder / "build/docs"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty page that keeps its errors and requests. Parametrised by width and scheme."""
    width, scheme = getattr(request, "param", (1400, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    made = context.new_page()
    made.set_default_timeout(60_000)  # a busy machine is no error
    made.errors, made.requests = [], []
    made.on("console", lambda m: made.errors.append(m.text) if m.type == "error" else None)
    made.on("pageerror", lambda error: made.errors.append(str(error)))
    made.on("request", lambda asked: made.requests.append(asked.url))
    yield made
    context.close()


@pytest.mark.slow
def test_search_leads_to_a_metric(page: Any, site: str) -> None:
    """From the first page, by keyboard, to what group/dead_frac means."""
    page.goto(site)
    page.wait_for_load_state("networkidle")  # the page listens for keys once its script has run
    page.keyboard.press("Control+k")
    page.locator("input:focus").wait_for()
    page.keyboard.type("group/dead_frac", delay=10)
    page.get_by_text("Share of the groups without signal").first.wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url("**/reference/metrics/**#groupdead_frac")
    assert page.locator("#groupdead_frac").is_visible()
    assert page.errors == []


@pytest.mark.parametrize("page", [(420, "light"), (1400, "dark")], indirect=True)
@pytest.mark.parametrize("name", ["", "start/", "concepts/", "results/", "reference/commands/"])
def test_pages_fit_and_ask_nothing_elsewhere(page: Any, site: str, name: str) -> None:
    page.goto(site + name)
    assert page.locator("h1").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert [url for url in page.requests if not url.startswith((site, "data:", "blob:"))] == []
    assert page.errors == []


def test_the_picture_of_a_tree_is_there(page: Any, site: str) -> None:
    page.goto(site)
    assert page.locator("img[src$='token_tree.svg']").evaluate("e => e.naturalWidth") > 600
