"""A real run on pages that mean harm: nothing of them runs or breaks anything on console, in the
log, in `rntp watch` or on the page."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_run, tiny_tokenizer
from rich.console import Console

from rntp.config import Config
from rntp.data import ShardWriter
from rntp.model.tokenizer import encode, tokenizer_digest
from rntp.report import build_report
from rntp.report.watch_frame import frame
from rntp.report.watched import Watched
from rntp.trainer import Trainer

pytestmark = pytest.mark.browser

HARM = (
    "<script>document.title='taken'</script>",
    "</script><script>alert(1)</script></style></template>",
    "[click](javascript:alert(1)) <a href=javascript:alert(2)>x</a>",
    "\u202e\u2066\u200fdesrever\u202c",
    "\x1b[31mred\x1b[2J\x1b]0;title\x07\x9b1m",
    "{{ 7*7 }} {% for x in y %} ${8*8} [bold]b[/bold]",
    "<img src=http://127.0.0.1:9/x onerror=alert(3)>",
)
DANGEROUS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def write_hostile(folder: Path) -> Path:
    """Pages of every harm in text and title; and one of a single word of a megabyte."""
    tokenizer = tiny_tokenizer()
    writer = ShardWriter(
        folder,
        shard_bytes=1 << 22,
        tokenizer_digest=tokenizer_digest(tokenizer),
        tokenizer_spec="tiny",
        prep_digest="0" * 64,
    )
    texts = [f"{harm} " * 12 for harm in HARM * 3] + ["w" * 1_000_000]
    with writer:
        for n, text in enumerate(texts):
            harm = HARM[n % len(HARM)]
            metadata = {"url": harm, "title": harm, "source": harm}
            writer.add(f"page-{n}", text, metadata, len(encode(tokenizer, text)))
        writer.finish({"pages": len(texts), "kept": len(texts)})
    return folder


@pytest.mark.slow
def test_a_run_on_hostile_pages(
    visit: Callable[..., Any], model_folders: dict[str, Path], tmp_path: Path
) -> None:
    corpus = write_hostile(tmp_path / "shards")
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    out = io.StringIO()
    console = Console(file=out, force_terminal=False, width=200)
    Trainer(Config.parse(raw, ["run.steps=4", f"run.name={HARM[1]!r}"]), console=console).fit()
    for text in (out.getvalue(), (tmp_path / "run" / "log.txt").read_text()):
        assert "step 4/4" in text
        assert not DANGEROUS.search(text)
    watched = Watched(tmp_path / "run")
    watched.refresh()
    shown = io.StringIO()
    terminal = Console(file=shown, width=100)
    terminal.print(frame(watched, terminal))
    assert "step 4 of 4" in shown.getvalue()
    assert not DANGEROUS.search(shown.getvalue())

    page_file = build_report([tmp_path / "run"], tmp_path / "report.html")
    assert page_file.stat().st_size < 1_000_000
    opened = visit(page_file)
    page = opened.page
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.locator("#thought-rows tr").count() > 10
    assert page.title() == f"{HARM[1]} – rntp report"
    # Documents go by their titles, and those are text.
    assert any("alert(1)" in name for name in page.locator(".t-name").all_inner_texts())
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert opened.requests == [page_file.as_uri()]
    assert opened.errors == []
