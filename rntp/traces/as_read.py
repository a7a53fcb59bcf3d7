"""Documents of a position as a reading window reads it, made of a thought that nobody drew.

A later run with `thought.thoughts_per_position: 0` trains on them by plain next-token prediction.
For a position and a thought there are three, of token ids:

    read     start · <think> thought </think> · last w tokens · continuation
    bare     start · last w tokens · continuation
    write    the page up to the position · <think> thought </think>

What is read of a thought is all but its calls of tools; see `Thought.read_ids`.

Without `bare` a window alone would be a text that the model has never seen, and every gain over it
too large. Of `write` the thought alone is learnt, of `read` what stands behind it: the rest is
`given`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rntp.errors import ConfigError
from rntp.model import LanguageModel
from rntp.model.reading import read_behind
from rntp.model.thought_tree import memory_branch, thought_branch
from rntp.types import Rollout, Thought

KINDS = ("read", "bare", "write")


@dataclass(frozen=True)
class Document:
    """One document. kind: see the module. ids: int64. given: how many of its first ids are read and
    never predicted."""

    kind: str
    ids: Tensor
    given: int


def check_kinds(kinds: Sequence[str]) -> None:
    """Raise ConfigError where a kind is none of `KINDS`, or there is none."""
    strange = [kind for kind in kinds if kind not in KINDS]
    if strange or not kinds:
        raise ConfigError(f"--kinds: {', '.join(strange) or 'none'}; there are {', '.join(KINDS)}")


def documents_at(
    model: LanguageModel,
    rollout: Rollout,
    position: int,
    thought: Thought,
    window: int,
    horizon: int,
) -> list[Document]:
    """Make the three documents of a position.

    window, horizon: tokens of the page before the position and from it on.
    """
    context, markers = rollout.context, (model.think_open_id, model.think_close_id)
    branch = thought_branch(thought.sampled_ids, thought.closed, *markers)
    memory = memory_branch(thought, *markers)
    start = branch.new_tensor([model.start_id])
    # One token more than a tree holds: here the last one, too, is predicted.
    behind = torch.cat(
        [
            read_behind(rollout, position, window, horizon),
            context.token_ids[position + horizon - 1 : position + horizon],
        ]
    )
    return [
        Document("read", torch.cat([start, memory, behind]), 1 + len(memory)),
        Document("bare", torch.cat([start, behind]), 0),
        # A marker to open is put where a thought shall stand; no one predicts it.
        Document("write", torch.cat([context.token_ids[:position], branch]), position + 1),
    ]


def without_prefix(document: Document, prefix: tuple[int, ...]) -> tuple[list[int], int]:
    """The document's ids and its number of given ones, without what the loader puts before every
    text of the tokenizer."""
    ids, given = document.ids.tolist(), document.given
    if prefix and tuple(ids[: len(prefix)]) == prefix:
        return ids[len(prefix) :], max(given - len(prefix), 0)
    return ids, given
