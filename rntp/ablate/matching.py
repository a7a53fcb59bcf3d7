"""Arms that spend alike: as many steps for each as spend what the reference arm spends in its own.

Computed before the start, from the estimate of a step at full thought length; what a run really
spent is in its metrics, and a column of the table adds it up.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from rntp.config import Config
from rntp.errors import ConfigError
from rntp.model import Sharing
from rntp.training.estimate import Shape, Tokens, full_flop

Match = Literal["tokens", "flop"]

UNITS: dict[Match, str] = {"tokens": "tokens", "flop": "TFLOP"}

# Header and fields of the column of what was really spent; see `rntp.ablate.experiment.Column`.
SPENT: dict[Match, tuple[str, dict[str, Any]]] = {
    "tokens": ("spent, tokens", {"metrics": "tokens/spent", "sum": True, "digits": 0}),
    "flop": ("spent, TFLOP", {"metrics": "compute/tflop", "sum": True}),
}


def step_cost(match: Match, config: Config) -> float:
    """Return what a step spends at full thought length: tokens read and sampled, or TFLOP.

    Raises ConfigError where TFLOP are asked for and the model's shape cannot be read.
    """
    if match == "tokens":
        return Tokens.of(config).spent
    return full_flop(config, _shape(config.model.spec, config.model.sharing)) / 1e12


def matched_steps(cost: float, reference_cost: float, reference_steps: int) -> int:
    """Steps whose cost comes nearest to that of the reference's; at least one."""
    return max(1, round(reference_steps * reference_cost / cost))


def match_facts(match: Match, reference: str, configs: Mapping[str, Config]) -> dict[str, Any]:
    """Return what is matched, and what every arm will spend, by the estimate. configs: one an
    arm."""
    spent = {arm: step_cost(match, c) * c.run.steps for arm, c in configs.items()}
    return {
        "by": match,
        "unit": UNITS[match],
        "reference": reference,
        "arms": {
            arm: {
                "steps": config.run.steps,
                "estimated": spent[arm],
                "share": spent[arm] / spent[reference],
            }
            for arm, config in configs.items()
        },
    }


def match_lines(facts: Mapping[str, Any]) -> list[str]:
    """The same for people: a line an arm."""
    width = max(len(arm) for arm in facts["arms"])
    return [
        f"matched to “{facts['reference']}”, {facts['unit']} by the estimate:",
        *(
            f"  {arm:<{width}}  {row['steps']} steps, {_amount(row['estimated'])} "
            f"({row['share']:.1%} of the reference's)"
            for arm, row in facts["arms"].items()
        ),
    ]


def refuse_other_steps(steps: int, reference_steps: int) -> None:
    """Raise ConfigError if an arm says itself how many steps it makes."""
    if steps != reference_steps:
        raise ConfigError(
            f"match computes run.steps, and this arm sets it to {steps} (the reference: "
            f"{reference_steps}); take run.steps out of the arm, or match out of the experiment"
        )


@cache
def _shape(spec: str, sharing: Sharing) -> Shape:
    try:
        return Shape.of_spec(spec, sharing)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"match: flop needs the shape of model.spec {spec!r}, which cannot be read: {error}; "
            "set it right, or match by tokens"
        ) from error


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
