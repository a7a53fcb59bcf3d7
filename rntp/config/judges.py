"""Judges outside of the run: who they are, what they are asked, and what they may cost."""

from typing import Annotated, Literal

from pydantic import Field

from rntp.config.choice import Choice
from rntp.config.choices import AUDIT, NonNegative, Positive, Weight
from rntp.config.section import Section


class JudgeEndpoint(Section):
    url: str
    """Address of an OpenAI-compatible API, up to and with `/v1`."""
    model: str
    """Model to ask for; a reply of another one is no verdict."""
    key: str | None = None
    """Name of the environment variable that holds the key; the key itself belongs in no config."""


class Judges(Section):
    itself: Literal["policy", "frozen"] = "policy"
    """Whose verdict self_judge and judge_gold give: that of the weights in training, which learn to
    please themselves, or that of the weights of the start, which keeps a copy of them."""
    use: dict[str, JudgeEndpoint] = Field(default={})
    """Judges of the scheme judge, by name: `{local: {url: http://127.0.0.1:8080/v1, model: m}}`."""
    sees: Literal["continuation", "page"] = "continuation"
    """continuation: compare the answer with how the page goes on. page: grade it without."""
    verdict: Literal["word", "reason"] = "word"
    """word: the probability of yes as the first token where the server gives it, else the word.
    reason: reason first; the last line holds the verdict."""
    combine: Literal["mean", "minimum"] = "mean"
    """What several judges give together. Where one of them is missing, so is the verdict."""
    rule: Literal["none", "exact", "math"] = "none"
    """A rule grades first, and judges are asked where it says no: the answer is what the
    continuation begins with, or has the same value (math-verify)."""
    at_once: Positive = 8
    """Questions under way at a time, on each rank."""
    seconds: Annotated[float, Field(gt=0)] = 60.0
    """A try may take, and all tries of a question that many times tries."""
    tries: Positive = 5
    """Tries of a question, with growing waits between them."""
    calls: NonNegative = 0
    """Verdicts that each rank may ask for in a run; what is beyond is missing. 0: no limit."""
    tokens: NonNegative = 0
    """Tokens of questions and replies that each rank may spend in a run, likewise."""
    missing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of a step's verdicts that may be missing: their thoughts leave their groups. Above it
    the step waits and asks again."""
    patience_s: Weight = 600.0
    """Seconds of waiting, after which the run saves and ends with exit code 5."""
    audit: Annotated[Choice, AUDIT] = AUDIT.choice("stop")
    """Whether known attacks are put to the judges before a run and every so often in it, and what a
    judge does that is fooled; see `rntp.judges.attacks`."""
