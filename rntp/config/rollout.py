"""Who samples: the trainer itself, or programs of their own."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from rntp.config.choice import Choice
from rntp.config.choices import ENGINES, NonNegative, Positive
from rntp.config.places import folder_or_url
from rntp.config.section import Section


def _number_to_start(value: object) -> object:
    return {"start": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Samplers(Section):
    start: NonNegative = 0
    """Samplers that the run starts beside itself, on its machine; others may join by
    `rntp sample STORE`. With 0, and no store, the trainer samples."""
    store: Annotated[Path | str | None, BeforeValidator(folder_or_url)] = None
    """Folder or URL (s3://…) through which trainer and samplers exchange weights and rollouts.
    null: `store` in run.dir, if samplers are started. See the page on samplers of the
    documentation."""
    max_age: NonNegative = 0
    """Updates that the weights which sampled may be behind those that train. 0: samplers wait for
    every update, and the run is the in-process one to the bit. Above 0 they do not, and tokens are
    weighted for it (importance_cap and its like of objective.algorithm)."""
    whole_every: Positive = 10
    """Versions of the weights from one that is written whole to the next. Those between are written
    as what has changed since the version before, where that is smaller. 1: all are whole."""
    contexts: NonNegative = 0
    """Contexts that a sampler takes at a time. 0: rollout.docs_per_batch, or less where every local
    sampler is to have a share of a step."""
    lease_s: Annotated[float, Field(gt=0)] = 60.0
    """A sampler that gives no sign of life for so long loses what it has taken: more than one batch
    takes to be prefilled, or one token of it to be drawn."""
    wait_s: Annotated[float, Field(gt=0)] = 1800.0
    """Without a sign of life of any sampler, or of the store, for so long the run saves and ends
    with exit code 5; the same command resumes it."""


class RolloutSection(Section):
    engine: Annotated[Choice, ENGINES] = ENGINES.choice("inprocess")
    """What samples for training, in the trainer's process or in that of a sampler: inprocess is
    rntp's own; vllm is vLLM in a child process (`make vllm`), for models that it knows. Evaluations
    are sampled in-process. See the page on samplers of the documentation."""
    samplers: Annotated[Samplers, BeforeValidator(_number_to_start)] = Samplers()
    """Programs of their own that sample for the trainer: `{start: 2, max_age: 1}`, or how many to
    start."""
    docs_per_batch: Positive = 8
    """Contexts that decode together. Changes speed and memory; the thoughts only as far as a GPU
    rounds differently."""
