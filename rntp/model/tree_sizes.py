"""How many tokens a rollout's tree has, and those of the same computation without sharing."""

from rntp.model.reading import BRANCHES, LossReads, bare_lengths
from rntp.types import Rollout, Thought


def tree_tokens(rollout: Rollout, horizon: int, reads: LossReads = BRANCHES) -> int:
    """Tokens of a rollout's tree: its context once, and every branch."""
    _, page = page_tokens(rollout, horizon, reads)
    thoughts = [t for group in rollout.thoughts for t in group]
    answers = sum(map(_answer_tokens, thoughts))
    if reads.window is None:
        return page + sum(_thought_lengths(rollout)) + len(thoughts) * (horizon - 1) + answers
    drawn = sum(branch_tokens(t, reads) for t in thoughts)
    bare, readings = _readings(rollout, reads.window, horizon)
    return page + drawn + answers + bare + sum(readings)


def learning_tokens(rollout: Rollout, horizon: int, reads: LossReads) -> int:
    """Count the tokens of a rollout's tree that have gradients."""
    if reads.continuation:
        return tree_tokens(rollout, horizon, reads)
    page, _ = page_tokens(rollout, horizon, reads)
    thoughts = (t for group in rollout.thoughts for t in group)
    return page + sum(branch_tokens(t, reads) + _answer_tokens(t) for t in thoughts)


def plain_tokens(rollout: Rollout, horizon: int, reads: LossReads = BRANCHES) -> tuple[int, int]:
    """Tokens that a model which shares nothing computes of a rollout's tree, and those of them that
    have gradients: the page, and every branch behind its prefix; see `rntp.model.unshared`."""
    learns, page = page_tokens(rollout, horizon, reads)
    learning = 0 if learns in rollout.positions else learns  # else a thought goes on from there
    silent = page if page > learns else 0
    if reads.window is not None:
        return _plain_with_window(rollout, horizon, reads, learning, silent)
    for p, group in zip(rollout.positions, rollout.thoughts, strict=True):
        for thought in group:
            kept, answer = branch_tokens(thought, reads), _answer_tokens(thought)
            ahead = 1 + len(thought.sampled_ids) + int(not thought.closed) + horizon - 1
            judged = p + ahead if ahead > kept else 0
            if reads.continuation:
                learning += judged + (p + kept + answer if answer or not judged else 0)
            else:
                learning += p + kept + answer
                silent += judged
    return learning + silent, learning


def _plain_with_window(
    rollout: Rollout, horizon: int, reads: LossReads, learning: int, silent: int
) -> tuple[int, int]:
    """The same where continuations are read in sequences of their own. learning, silent: of the
    page."""
    assert reads.window is not None
    for p, group in zip(rollout.positions, rollout.thoughts, strict=True):
        learning += sum(p + branch_tokens(t, reads) + _answer_tokens(t) for t in group)
    bare, readings = _readings(rollout, reads.window, horizon)
    read = bare + sum(readings)
    return learning + silent + read, learning + read * reads.continuation


def plain_read(rollout: Rollout) -> int:
    """Tokens that the sampler of such a model reads: the page, the prefix of every position, and
    that of every thought with an answer."""
    read = len(rollout.context)
    for p, group in zip(rollout.positions, rollout.thoughts, strict=True):
        read += p + 1
        read += sum(
            p + 1 + len(t.sampled_ids) + int(not t.closed) for t in group if len(t.answer_ids)
        )
    return read


def unshared_tokens(rollout: Rollout, horizon: int, window: int | None = None) -> int:
    """Tokens of the same computation with one sequence a thought and continuation, and one more a
    thought and answer: the two may not see each other. With a reading window a thought is one
    sequence and its reading another.
    """
    if not rollout.positions:
        return max(len(rollout.context) - 1, 1)
    thoughts = [
        (p, t) for p, group in zip(rollout.positions, rollout.thoughts, strict=True) for t in group
    ]
    behind = horizon - 1 if window is None else 0
    read = 0 if window is None else sum(_readings(rollout, window, horizon)[1])
    return read + sum(
        prefix + length + behind + (prefix + length + _answer_tokens(t)) * bool(len(t.answer_ids))
        for (prefix, t), length in zip(thoughts, _thought_lengths(rollout), strict=True)
    )


def reads_page(rollout: Rollout, reads: LossReads) -> bool:
    """Whether all tokens of the page are predicted: one with thoughts in it is some bare page."""
    return reads.context and not rollout.context.seen


def page_tokens(rollout: Rollout, horizon: int, reads: LossReads) -> tuple[int, int]:
    """Tokens of a page that learn, and all those that predict something."""
    if reads_page(rollout, reads) or not rollout.positions:
        stop = max(len(rollout.context) - 1, 1)
        return stop, stop
    last = rollout.positions[-1]
    stop = last + horizon - 1
    return (stop if reads.continuation else last), stop


def branch_tokens(thought: Thought, reads: LossReads) -> int:
    """Tokens of a thought with its markers that learn: without its last where only a continuation
    comes after them, or nothing, as with a reading window."""
    drawn = len(thought.sampled_ids)
    if reads.window is not None and not len(thought.answer_ids):
        return max(drawn, 1)
    if reads.continuation or len(thought.answer_ids) or not drawn:
        return 1 + drawn + int(not thought.closed)
    return drawn


def _answer_tokens(thought: Thought) -> int:
    """Tokens of an answer that predict something."""
    return max(len(thought.answer_ids) - 1, 0)


def _readings(rollout: Rollout, window: int, horizon: int) -> tuple[int, list[int]]:
    """Tokens of the readings without a memory, all together, and of those with one, each."""
    bare = bare_lengths(rollout, window, horizon)
    with_memory = [
        length + 1 + len(thought.read_ids) + int(not thought.closed)
        for length, group in zip(bare, rollout.thoughts, strict=True)
        for thought in group
    ]
    return sum(bare), with_memory


def _thought_lengths(rollout: Rollout) -> list[int]:
    """Of every thought with its markers."""
    return [
        1 + t.sampled_ids.shape[0] + int(not t.closed) for group in rollout.thoughts for t in group
    ]
