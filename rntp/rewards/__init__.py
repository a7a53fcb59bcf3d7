"""Reward schemes: one file each, a pure function from `RewardInputs` to rewards [P, G].

A new scheme is a file beside these with one registered function, and a line in the imports below
(or, outside the package, anywhere that runs before the config is checked):

    @rntp.rewards.register("shortest")
    def shortest(inputs: RewardInputs) -> Tensor:
        return -inputs.num_tokens_PG.float()

What a scheme needs is said where it is registered: `baseline="subtracts"` or `"needs"` for one that
compares with no thought, `answers=True` for one that grades what the policy writes after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rntp.registry import Registry
from rntp.types import RewardInputs

Scheme = Callable[[RewardInputs], Tensor]
REGISTRY: Registry[Scheme] = Registry("reward scheme")

# What a scheme does with the no-think prediction. One that subtracts (or needs it, to subtract and
# more) gives a thought that changes nothing a reward of 0.
UseOfBaseline = Literal["ignores", "subtracts", "needs"]
BASELINES: dict[str, UseOfBaseline] = {}

# Who grades an answer, and what is in view besides page and answer; see
# `rntp.objective.judge_model`.
JudgeKind = Literal["self", "gold"]


@dataclass(frozen=True, slots=True)
class Needs:
    """What a scheme asks of a run: answers to grade, a judge of them, an importable package (of the
    extra `text`), the collision probability of every prediction, judges outside of the run, tasks
    that say what is right, a reading window that loses something."""

    answers: bool = False
    judge: JudgeKind | None = None
    package: str | None = None
    collision: bool = False
    outside: bool = False
    tasks: bool = False
    lost_span: bool = False


NEEDS: dict[str, Needs] = {}


def register(
    name: str,
    *,
    baseline: UseOfBaseline = "ignores",
    answers: bool = False,
    judge: JudgeKind | None = None,
    package: str | None = None,
    collision: bool = False,
    outside: bool = False,
    tasks: bool = False,
    lost_span: bool = False,
) -> Callable[[Scheme], Scheme]:
    """Decorator that adds a scheme, with what it needs; a run that lacks it is refused at start.

    Raises ValueError if the name is taken.
    """

    def add(scheme: Scheme) -> Scheme:
        REGISTRY.register(name)(scheme)
        BASELINES[name] = baseline
        NEEDS[name] = Needs(answers, judge, package, collision, outside, tasks, lost_span)
        return scheme

    return add


from rntp.rewards import (  # noqa: E402
    answer_exact,
    bleu,
    brier,
    brier_full,
    byte_prefix,
    chrf,
    correct,
    exact_prefix,
    exact_token,
    format_only,
    judge,
    judge_gold,
    length_triangle,
    log_ratio,
    logprob,
    lost_span,
    mean_prob,
    net_gain,
    positive_gain,
    ppl_rank,
    ppl_steps,
    prob,
    random,
    sample_bound,
    self_judge,
    weighted_log_ratio,
    weighted_prob,
)

__all__ = [
    "BASELINES",
    "NEEDS",
    "REGISTRY",
    "Needs",
    "Scheme",
    "answer_exact",
    "bleu",
    "brier",
    "brier_full",
    "byte_prefix",
    "chrf",
    "correct",
    "exact_prefix",
    "exact_token",
    "format_only",
    "judge",
    "judge_gold",
    "length_triangle",
    "log_ratio",
    "logprob",
    "lost_span",
    "mean_prob",
    "net_gain",
    "positive_gain",
    "ppl_rank",
    "ppl_steps",
    "prob",
    "random",
    "register",
    "sample_bound",
    "self_judge",
    "weighted_log_ratio",
    "weighted_prob",
]
