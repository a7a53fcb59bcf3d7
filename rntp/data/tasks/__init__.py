"""Tasks as data: prompts with answers that can be checked, as contexts by ordinal.

`data.source: task:FILE.jsonl`, `task:hf:NAME[:SPLIT]` or `task:gym:GENERATOR`. A context is the
prompt, then the true answer; its only position is where the answer begins, so that a thought is an
attempt at the task, and the answer is at once the continuation that likelihood rewards score and
the truth that rules compare with. The prompts of training and evaluation are never the same: a
prompt's split is decided by its hash.
"""

from rntp.data.tasks.rows import Row
from rntp.data.tasks.source import TaskSource, task_stream

__all__ = ["Row", "TaskSource", "task_stream"]
