"""Rules that grade before a judge does: where one says yes, no judge has to be paid or trusted.

A rule's yes is nearly always right (precision 99 %), its no is often wrong (2505.22203): so judges
are asked about what the rule refuses.
"""

from typing import Literal

from rntp.errors import ConfigError
from rntp.judges.prompts import Case

Rule = Literal["none", "exact", "math"]


def rule_says(rule: Rule, case: Case) -> float | None:
    """1 where the rule finds the answer right; None where a judge has to say."""
    answer, truth = " ".join(case.answer.split()), " ".join(case.truth.split())
    if rule == "none" or not answer:
        return None
    if rule == "exact":
        return 1.0 if (truth + " ").startswith(answer + " ") else None
    return 1.0 if same_in_maths(answer, truth, "reward.judges.rule") else None


def same_in_maths(answer: str, truth: str, field: str) -> bool:
    """Whether two expressions have the same value, as math-verify finds them in both texts. field:
    of the config that asks for it. Raises ConfigError where the package is missing."""
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise ConfigError(
            f"{field}: math needs the package math-verify; install the extra `judges` (pip install "
            "'rntp[judges]'), or set the rule to exact"
        ) from error
    # Its own limits are signals, which only the main thread may set.
    gold, guess = (parse(text, parsing_timeout=None) for text in (truth, answer))
    return bool(gold and guess and verify(gold, guess, timeout_seconds=None))
