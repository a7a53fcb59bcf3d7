"""Thoughts that should not help, and one that should: causal controls on given rollouts.

Each control replaces the thoughts of rollouts by others at the same positions, and the same
forward scores them. Thoughts that carry information lose their gain under `shuffled`, `pause`
and `empty`; computation as such would keep it under `pause`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rntp.errors import ConfigError
from rntp.model.tokenizer import encode, pause_id
from rntp.types import Rollout, Thought

Control = Callable[[Sequence[Rollout], PreTrainedTokenizerBase], list[Rollout]]


def shuffled(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """Another document's thought: the one at the next position of the same class, where the corpus
    has classes, else at the position of the same number in the next document.

    Raises ConfigError with fewer than two documents.
    """
    if len(rollouts) < 2:
        raise ConfigError(
            "evaluation.controls: shuffled takes another document's thoughts, and there is one "
            "document; raise evaluation.docs"
        )

    def other(number: int, place: int) -> tuple[Thought, ...]:
        mine = _class(rollouts[number], place)
        following = [*rollouts[number + 1 :], *rollouts[:number]]
        for rollout in following:
            alike = [k for k in range(len(rollout.positions)) if _class(rollout, k) == mine]
            if alike:
                return rollout.thoughts[alike[place % len(alike)]]
        return following[0].thoughts[place]

    return [
        replace(r, thoughts=tuple(other(n, k) for k in range(len(r.positions))))
        for n, r in enumerate(rollouts)
    ]


def pause(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """Give as many full stops as the thought has tokens (2404.15758)."""
    dot = torch.tensor([pause_id(tokenizer)])
    return _each(rollouts, lambda ids: dot.expand(len(ids)))


def truncated(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """The first half of the thought, rounded down."""
    return _each(rollouts, lambda ids: ids[: len(ids) // 2])


def empty(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """The markers with nothing between them."""
    return _each(rollouts, lambda ids: ids[:0])


def oracle(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """The thought that leaves nothing to guess, where the corpus knows one; else no position.

    Raises ConfigError if no position of the rollouts has one.
    """
    found = []
    for rollout in rollouts:
        known = rollout.context.labels.oracle if rollout.context.labels else {}
        places = [k for k, p in enumerate(rollout.positions) if p in known]
        if places:
            chosen = tuple(rollout.positions[k] for k in places)
            found.append(
                replace(
                    rollout,
                    positions=chosen,
                    thoughts=tuple((_forced(encode(tokenizer, known[p].thought)),) for p in chosen),
                    entropy=rollout.entropy[places],
                    nll=rollout.nll[places],
                )
            )
    if not found:
        raise ConfigError(
            "evaluation.controls: oracle needs a corpus that knows the answers (see "
            "experiments/planted); leave it out"
        )
    return found


CONTROLS: dict[str, Control] = {f.__name__: f for f in (shuffled, pause, truncated, empty, oracle)}


def _class(rollout: Rollout, place: int) -> str:
    labels = rollout.context.labels
    return labels.classes[rollout.positions[place]] if labels else ""


def _forced(ids: Tensor) -> Thought:
    """A thought that nobody sampled; its close marker is appended."""
    return Thought(ids.clone(), torch.zeros(len(ids)), closed=False)


def _each(rollouts: Sequence[Rollout], change: Callable[[Tensor], Tensor]) -> list[Rollout]:
    def changed(thought: Thought) -> Thought:
        return _forced(change(thought.content))

    return [
        replace(r, thoughts=tuple(tuple(map(changed, group)) for group in r.thoughts))
        for r in rollouts
    ]
