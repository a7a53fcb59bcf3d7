"""What looks wrong in the metrics while every number is still finite, said in time.

Deterministic in the metrics, and kept in the checkpoint: a resumed run raises the same alarms at
the same steps. Steps that were skipped as non-finite are not observed, nor are values that are
not finite, so that no alarm is deaf or shrill because of them.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rntp.training.alarm_maths import above, fall

WINDOW = 64  # steps that a statistic looks back
WARM_UP = 16  # steps before a spike can be told
SPIKE = 10.0  # spreads above the median
STREAK = 10  # steps in a row
SHORTEST = 1.0  # tokens: a thought of less says nothing
LEAST_FALL = 0.05  # nats per token, between the halves of the window
FALL_ERRORS = 4.0  # standard errors
QUIET = 50  # steps between two lines of one alarm

_WINDOWS = ("loss/total", "grad_norm", "gain/mean")
_STREAKS: dict[str, Callable[[Mapping[str, float]], bool]] = {
    "dead": lambda m: m.get("group/dead_frac", 0.0) >= 1.0,
    "empty": lambda m: m.get("thought/tokens_mean", math.inf) < SHORTEST,
}
_KINDS = (*_WINDOWS, *_STREAKS)


class Alarms:
    """Observes each step's metrics, and says what is worth a person's look."""

    def __init__(self) -> None:
        self._values = {name: torch.zeros(WINDOW, dtype=torch.float64) for name in _WINDOWS}
        self._seen = {name: torch.zeros((), dtype=torch.int64) for name in _WINDOWS}
        self._streak = {name: torch.zeros((), dtype=torch.int64) for name in _STREAKS}
        self._said = {name: torch.full((), -QUIET, dtype=torch.int64) for name in _KINDS}

    def observe(self, metrics: Mapping[str, float]) -> list[str]:
        """Take in a step; the lines to say about it, usually none. metrics: those of metrics.jsonl.

        Each kind of alarm speaks once in QUIET steps at most.
        """
        if metrics.get("skipped"):
            return []
        found: dict[str, str] = {}
        for name in _WINDOWS:
            value = metrics.get(name, math.nan)
            if math.isfinite(value):
                found |= self._judge(name, value)
                self._values[name][int(self._seen[name]) % WINDOW] = value
                self._seen[name] += 1
        for name, holds in _STREAKS.items():
            self._streak[name].copy_(self._streak[name] + 1 if holds(metrics) else torch.tensor(0))
            if self._streak[name] >= STREAK:
                found[name] = _OF_STREAKS[name]
        step = int(metrics["step"])
        now = {name: text for name, text in found.items() if step >= int(self._said[name]) + QUIET}
        for name in now:
            self._said[name].fill_(step)
        return list(now.values())

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {
            f"{kind}.{name}": tensor
            for kind, group in self._groups().items()
            for name, tensor in group.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def _groups(self) -> dict[str, dict[str, Tensor]]:
        return {
            "values": self._values,
            "seen": self._seen,
            "streak": self._streak,
            "said": self._said,
        }

    def _window(self, name: str) -> list[float]:
        """The values of the last steps, oldest first."""
        seen = int(self._seen[name])
        if seen < WINDOW:
            return self._values[name][:seen].tolist()
        return self._values[name].roll(-(seen % WINDOW)).tolist()

    def _judge(self, name: str, value: float) -> dict[str, str]:
        before = self._window(name)
        if name != "gain/mean":
            far = above(value, before) if len(before) >= WARM_UP else 0.0
            return {name: _spike(name, value, far)} if far > SPIKE else {}
        window = [*before, value][-WINDOW:]
        if len(window) < WINDOW:
            return {}
        size, errors = fall(window)
        return {name: _fallen(size)} if size > LEAST_FALL and errors > FALL_ERRORS else {}


def _spike(name: str, value: float, far: float) -> str:
    return (
        f"{name} jumped to {value:.3g}, {far:.0f} spreads above its median of the last {WINDOW} "
        "steps; look at the rollouts of this step, and lower optim.lr or optim.max_grad_norm in a "
        "new run if it comes again"
    )


def _fallen(size: float) -> str:
    return (
        f"gain/mean has fallen by {size:.3f} nats per token within {WINDOW} steps: thoughts help "
        "less and less; compare with an earlier checkpoint (`rntp eval --checkpoint`), and lower "
        "optim.lr or raise objective.continuation_weight in a new run"
    )


_OF_STREAKS = {
    "dead": (
        f"in {STREAK} steps in a row every thought of a group earned the same, so the policy "
        "learns nothing; raise thought.temperature, thought.thoughts_per_position or "
        "reward.horizon, or choose a denser reward.scheme"
    ),
    "empty": (
        f"in {STREAK} steps in a row thoughts had less than {SHORTEST:g} token on average: "
        "thinking has collapsed; lower token_cost of net_gain or optim.lr, or raise "
        "objective.entropy_weight in a new run"
    ),
}
