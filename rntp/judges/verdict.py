"""From what an endpoint sends to a verdict: the probability of yes, or why there is none."""

import json
import math
from typing import Any

from rntp.judges.prompts import Style
from rntp.types import Verdict


def read_reply(body: bytes, model: str, style: Style) -> Verdict:
    """Read a chat completion strictly: half a reply, or another model's, is no verdict."""
    try:
        found = json.loads(body)
        choice, named = found["choices"][0], found["model"]
        tokens = int((found.get("usage") or {}).get("total_tokens", 0))
        text = choice["message"]["content"] or ""
        ended = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Verdict(None, "unreadable")
    if named != model:
        return Verdict(None, "wrong_model", tokens)
    if style == "reason":
        return _of(None if ended == "length" else last_line(text), tokens)
    weighed = from_logprobs(choice)
    return _of(one_word(text) if weighed is None else weighed, tokens)


def from_logprobs(choice: Any) -> float | None:
    """p(yes) / (p(yes) + p(no)) of the first token, where the server says how likely they were."""
    try:
        likely = choice["logprobs"]["content"][0]["top_logprobs"]
        chances = [(str(t["token"]).strip().lower(), math.exp(t["logprob"])) for t in likely]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None
    yes, no = (sum(p for token, p in chances if token == word) for word in ("yes", "no"))
    return yes / (yes + no) if yes + no > 0 else None


def one_word(text: str) -> float | None:
    """1 for yes, 0 for no; None for anything else, however it begins."""
    return {"yes": 1.0, "no": 0.0}.get(text.strip().strip(".!\"'").lower())


def last_line(text: str) -> float | None:
    """Read the verdict that the last line holds, and nothing else in it."""
    line = text.strip().rpartition("\n")[2].strip()
    try:
        found = json.loads(line)
    except ValueError:
        return None
    if not isinstance(found, dict) or list(found) != ["verdict"]:
        return None
    return {"yes": 1.0, "no": 0.0}.get(str(found["verdict"]).lower())


def _of(verdict: float | None, tokens: int) -> Verdict:
    return Verdict(verdict, "" if verdict is not None else "unclear", tokens)
