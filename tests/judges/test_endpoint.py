"""One question, one reply, whatever a server does: faults are named, and none becomes a 0."""

import math
import os
from typing import Any

import pytest
from scripted_server import MODEL, Said, Script, completion, serving

from rntp.errors import ConfigError
from rntp.judges import endpoint as endpoint_module
from rntp.judges.endpoint import Endpoint
from rntp.judges.verdict import last_line, one_word
from rntp.types import Verdict

QUESTION = [{"role": "user", "content": "right?"}]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(endpoint_module, "_LONGEST_WAIT_S", 0.01)


def ask(
    script: Script, style: str = "word", tries: int = 3, seconds: float = 5.0
) -> tuple[Verdict, int]:
    """What comes of a question, and how many tries it took."""
    with serving(script) as server:
        judge = Endpoint(server.url, MODEL, None, style, seconds=seconds, tries=tries)
        found = judge.ask(QUESTION)
        judge.close()
        return found, len(server.asked)


def test_a_probability_where_the_server_gives_one() -> None:
    likely = {" Yes": math.log(0.3), "yes": math.log(0.3), "no": math.log(0.2), "I": math.log(0.2)}

    def script(request: dict[str, Any], number: int) -> Said:
        assert request["max_tokens"] == 1
        assert request["temperature"] == 0
        return Said(completion("Yes", logprobs=likely))

    found, tries = ask(script)
    assert found.yes == pytest.approx(0.75)
    assert (found.tokens, tries) == (50, 1)


def test_a_word_where_it_gives_none() -> None:
    assert ask(lambda request, number: "Yes.")[0].yes == 1.0
    assert ask(lambda request, number: "no")[0].yes == 0.0
    found, tries = ask(lambda request, number: "It depends")
    assert (found.yes, found.failure, tries) == (None, "unclear", 1)


def test_the_last_line_holds_the_verdict() -> None:
    assert last_line('Both speak of rain.\n{"verdict": "yes"}') == 1.0
    assert last_line('{"verdict": "no"}\n') == 0.0
    for text in (
        '{"verdict": "yes"} I think',
        '{"verdict": "maybe"}',
        "yes",
        "",
        '{"verdict": "yes", "x": 1}',
        "[1]",
    ):
        assert last_line(text) is None
    assert one_word("yes, because") is None


def test_reasoning_that_was_cut_off_is_no_verdict() -> None:
    def script(request: dict[str, Any], number: int) -> Said:
        body = completion('{"verdict": "yes"}').replace(b'"stop"', b'"length"')
        return Said(body)

    assert ask(script, "reason")[0] == Verdict(None, "unclear", 50)
    assert ask(lambda request, number: 'Well.\n{"verdict": "yes"}', "reason")[0].yes == 1.0


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        (Said(b"{}", status=500), "server"),
        (Said(b"{}", status=429), "rate_limited"),
        (Said(completion("yes"), cut=20), "unreadable"),
        (Said(b"<html>gateway</html>"), "unreadable"),
        (Said(b'{"choices": []}'), "unreadable"),
        (Said(b" " * (2 << 20)), "too_long"),
    ],
)
def test_what_may_pass_is_tried_again(said: Said, failure: str) -> None:
    found, tries = ask(lambda request, number: said if number < 3 else Said(completion("yes")))
    assert (found.yes, tries) == (1.0, 3)
    found, tries = ask(lambda request, number: said)
    assert (found.yes, found.failure, tries) == (None, failure, 3)


@pytest.mark.parametrize(
    ("said", "failure"),
    [(Said(b"{}", status=401), "refused"), (Said(completion("yes", model="other")), "wrong_model")],
)
def test_what_will_not_pass_is_not(said: Said, failure: str) -> None:
    found, tries = ask(lambda request, number: said)
    assert (found.yes, found.failure, tries) == (None, failure, 1)


def test_time_and_absence() -> None:
    found, _ = ask(
        lambda request, number: Said(completion("yes"), wait_s=1.0), tries=1, seconds=0.2
    )
    assert found == Verdict(None, "out_of_time")
    judge = Endpoint("http://127.0.0.1:9/v1", MODEL, None, "word", seconds=1.0, tries=1)
    assert judge.ask(QUESTION) == Verdict(None, "unreachable")


def test_a_key_is_named_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ConfigError, match="JUDGE_KEY, and it is not set; export it"):
        Endpoint("http://x/v1", MODEL, "JUDGE_KEY", "word", seconds=1, tries=1)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = Endpoint("http://x/v1", MODEL, "JUDGE_KEY", "word", seconds=1, tries=1)
    assert judge._client.headers["Authorization"] == "Bearer secret"
    assert "secret" not in str(judge.identity)
    assert os.environ["JUDGE_KEY"] == "secret"
