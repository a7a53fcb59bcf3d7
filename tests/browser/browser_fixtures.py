"""A real browser for the pages: Debian's Chromium, led by Playwright. Both may be missing."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # fake_run

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """RNTP_CHROMIUM, or what is installed."""
    return os.environ.get("RNTP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Opened:
    """A page in the browser, and what happened in it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")  # Playwright keeps an asyncio loop running as long as it is open
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: `make browser-test`"
    )
    path = chromium()
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or set RNTP_CHROMIUM")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Opened]]:
    """visit(path, width=1400, scheme="light", fragment="", script=True): the page, opened."""
    contexts = []

    def opened(
        path: Path,
        width: int = 1400,
        scheme: str = "light",
        fragment: str = "",
        script: bool = True,
    ) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=script,
            reduced_motion="reduce",  # a page that still scrolls cannot be measured
        )
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.set_default_timeout(60_000)
        found.page.on("console", lambda message: found.errors.append(message.text))
        found.page.on("pageerror", lambda error: found.errors.append(str(error)))
        found.page.on("dialog", lambda dialog: found.errors.append(f"dialog {dialog.message}"))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(f"{path.as_uri()}{fragment}")
        return found

    yield opened
    for context in contexts:
        context.close()
