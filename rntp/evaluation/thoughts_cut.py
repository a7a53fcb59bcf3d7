"""Thoughts that are closed early."""

from collections.abc import Sequence
from dataclasses import replace

from rntp.config import Config
from rntp.errors import ConfigError
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


def check_lengths(config: Config, lengths: Sequence[int]) -> None:
    """Raise ConfigError where thoughts cannot be cut so."""
    longest = config.thought.thought_tokens
    if any(not 1 <= n < longest for n in lengths) or len(set(lengths)) < len(lengths):
        raise ConfigError(
            f"--lengths {','.join(map(str, lengths))}: give different numbers of tokens from 1 to "
            f"{longest - 1}; the model's thoughts have {longest} at most (thought.thought_tokens)"
        )
    if lengths and (config.thought.tools.use or config.reading.piece is not None):
        raise ConfigError(
            "--lengths: thoughts that call tools or are carried from piece to piece cannot be "
            "closed early and stay what they are; leave --lengths out"
        )
