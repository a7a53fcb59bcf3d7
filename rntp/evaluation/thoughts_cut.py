"""Thoughts that are closed early."""

from dataclasses import replace

from rntp.types import Rollout, Thought


def cut(rollout: Rollout, most: int) -> Rollout:
    """The same with its thoughts closed after so many tokens: what sampling with a smaller
    `thought.thought_tokens` would have drawn, since every token has a draw of its own."""
    return replace(
        rollout, thoughts=tuple(tuple(_cut(t, most) for t in group) for group in rollout.thoughts)
    )


def _cut(thought: Thought, most: int) -> Thought:
    if len(thought.sampled_ids) <= most:
        return thought
    return Thought(
        thought.sampled_ids[:most].clone(), thought.sampled_logprobs[:most].clone(), False
    )
