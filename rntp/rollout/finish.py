"""From what a branch drew to a thought and its answer."""

from dataclasses import replace

from torch import Tensor

from rntp.types import Thought


def finish(ids: Tensor, logprobs: Tensor, close_id: int) -> Thought:
    """Cut a branch after its close marker, if it drew one."""
    closes = (ids == close_id).nonzero()
    closed = len(closes) > 0
    length = int(closes[0]) + 1 if closed else len(ids)
    return Thought(ids[:length].clone(), logprobs[:length].float().clone(), closed)


def answered(thought: Thought, ids: Tensor, logprobs: Tensor, eos_id: int | None) -> Thought:
    """The thought with its answer, cut after the end token, if it drew one."""
    ends = (ids == eos_id).nonzero() if eos_id is not None else ids[:0]
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    return replace(
        thought,
        answer_ids=ids[:length].clone(),
        answer_logprobs=logprobs[:length].float().clone(),
        answer_ended=len(ends) > 0,
    )
