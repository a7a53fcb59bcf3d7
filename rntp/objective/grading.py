"""Whether the answer to a task is right, by the task's own rule.

exact: answer and truth are the same text, upper and lower case, white space and a full stop at the
end aside. math: they have the same value (math-verify). own: what the maker of the task says, which
for reasoning-gym may be a share.

Of an answer only its first line counts where the truth has one line: a base model that has answered
goes on writing, and has no other way to say that it is done. Nor does a colon in front of it count.
An empty answer is wrong.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rntp.data.tasks.procedural import made_score
from rntp.judges.rules import same_in_maths
from rntp.types import Rollout, Task


def grade(task: Task, answer: str) -> float:
    """Score an answer, in [0, 1]; 1 is right. Raises ConfigError where a package is missing."""
    said = _said(answer, task.answer)
    if not said:
        return 0.0
    if task.rule == "own" and task.made is not None:
        return made_score(task.made, said)
    if task.rule == "math":
        return float(same_in_maths(said, task.answer, "data.tasks.rule"))
    return float(_plain(said) == _plain(task.answer))


def right(rollouts: Sequence[Rollout], decode: Callable[[Tensor], str]) -> Tensor:
    """Score all answers: float32 [P, G]; 0 on pages, and all zeros where no answer is written.

    decode: text of ids.
    """
    found = [
        [grade(r.context.task, decode(t.answer)) if r.context.task else 0.0 for t in group]
        for r in rollouts
        for group in r.thoughts
    ]
    return torch.tensor(found, dtype=torch.float32)


def _said(answer: str, truth: str) -> str:
    """What of an answer counts."""
    text = answer.strip().removeprefix(":").strip()
    return text if "\n" in truth.strip() else text.partition("\n")[0].strip()


def _plain(text: str) -> str:
    """The text without what makes no difference."""
    return " ".join(text.split()).removesuffix(".").strip().casefold()
