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
from rntp.model.tokenizer import encode_marked, pause_id
from rntp.types import Rollout, Thought, runs

Control = Callable[[Sequence[Rollout], PreTrainedTokenizerBase], list[Rollout]]


def shuffled(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """Another document's thought: the one at the next position of the same class, where the corpus
    has classes, else at the position of the same number in the next document.

    Raises ConfigError with fewer than two documents.
    """

    def other(number: int, place: int) -> tuple[Thought, ...]:
        mine = _class(rollouts[number], place)
        # Of a page that is read piece by piece, another page's memory at the same piece.
        left = len(rollouts[number].context.left)
        others = (*rollouts[number + 1 :], *rollouts[:number])
        following = [rollout for rollout in others if len(rollout.context.left) == left]
        if not following:
            raise ConfigError(
                "evaluation.controls: shuffled takes another document's thoughts, and there is one "
                "document; raise evaluation.docs"
            )
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
    """The thought that leaves nothing to guess, where the corpus knows one; else no position. It
    may spell markers of tools: a call and its result.

    Raises ConfigError if no position of the rollouts has one.
    """
    found = []
    for rollout in rollouts:
        known = rollout.context.labels.oracle if rollout.context.labels else {}
        places = [k for k, p in enumerate(rollout.page_positions) if p in known]
        if places:
            chosen = tuple(rollout.positions[k] for k in places)
            oracles = [known[rollout.page_positions[k]] for k in places]
            found.append(
                replace(
                    rollout,
                    positions=chosen,
                    thoughts=tuple(
                        (_forced(encode_marked(tokenizer, o.thought)),) for o in oracles
                    ),
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


def other_results(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """Results of tools that another document's thoughts were given, in place of one's own. Only
    where a thought was given any, and another document has some."""
    of = [[r for t in _thoughts(rollout) for r in _results(t)] for rollout in rollouts]

    def changed(number: int, thought: Thought) -> Thought | None:
        others = [r for of_one in (*of[number + 1 :], *of[:number]) for r in of_one]
        own = len(_results(thought))
        if not own or not others:
            return None
        return _with_results(thought, [others[i % len(others)] for i in range(own)])

    return _where_given(rollouts, changed)


def no_results(rollouts: Sequence[Rollout], tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """The same calls with nothing between the markers of their results. Only where there are any:
    what asking is worth without the answer."""

    def changed(number: int, thought: Thought) -> Thought | None:
        found = _results(thought)
        return _with_results(thought, [r[[0, -1]] for r in found]) if found else None

    return _where_given(rollouts, changed)


CONTROLS: dict[str, Control] = {
    f.__name__: f for f in (shuffled, pause, truncated, empty, oracle, other_results, no_results)
}


def _thoughts(rollout: Rollout) -> list[Thought]:
    return [t for group in rollout.thoughts for t in group]


def _results(thought: Thought) -> list[Tensor]:
    """What tools gave, a result a piece, markers included: int64 [n] each."""
    return [
        thought.sampled_ids[begin:end]
        for begin, end, given in runs(thought.given.tolist())
        if given and begin
    ]


def _with_results(thought: Thought, results: list[Tensor]) -> Thought:
    """The same thought, with these in place of what tools gave."""
    following = iter(results)
    ids, given = [], []
    for begin, end, is_given in runs(thought.given.tolist()):
        has_result = is_given and begin > 0
        ids.append(next(following) if has_result else thought.sampled_ids[begin:end])
        given.append(torch.full((len(ids[-1]),), is_given))
    together = torch.cat(ids)
    return replace(
        thought,
        sampled_ids=together,
        sampled_logprobs=torch.zeros(len(together)),
        given=torch.cat(given),
    )


def _where_given(
    rollouts: Sequence[Rollout], change: Callable[[int, Thought], Thought | None]
) -> list[Rollout]:
    """Rollouts with their thoughts changed, and of these only positions all of whose thoughts
    were."""
    found = []
    for number, rollout in enumerate(rollouts):
        groups = [[change(number, t) for t in group] for group in rollout.thoughts]
        places = [k for k, group in enumerate(groups) if None not in group]
        if places:
            found.append(
                replace(
                    rollout,
                    positions=tuple(rollout.positions[k] for k in places),
                    thoughts=tuple(tuple(t for t in groups[k] if t is not None) for k in places),
                    entropy=rollout.entropy[places],
                    nll=rollout.nll[places],
                )
            )
    return found


def _class(rollout: Rollout, place: int) -> str:
    labels = rollout.context.labels
    return labels.classes[rollout.page_positions[place]] if labels else ""


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
