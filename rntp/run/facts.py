"""What stands in the files of a run that programs read: the keys, and what they hold."""

from typing import Any, Literal, NotRequired, TypedDict


class StartFacts(TypedDict):
    """Facts of one start, which the next may change. changed: fields set otherwise than before."""

    world_size: int
    devices: list[str]
    sharing: Literal["tree", "none"]
    changed: NotRequired[dict[str, Any]]


class RunFacts(TypedDict):
    """Facts of a run, in manifest.json beside versions, source, machine and command.

    segments: the steps that had the same data; see `rntp.data.state`.
    """

    name: str
    seed: int
    config_digest: str
    data_digest: str
    data_guarantee: str
    tokenizer_digest: str
    segments: list[dict[str, Any]]
    model: str
    num_parameters: int


class CheckpointState(TypedDict):
    """The JSON facts of a checkpoint, beside its step and number of ranks.

    next_ordinal: all before it are trained. set_aside: ordinals that are not trained any more.
    data: what ordinals mean; see `rntp.data.state.DataState`. reference: the second set of weights.
    sampled: the files that samplers brought for the last step; see
    `rntp.rollout.store.engine.StoreEngine.facts`.
    """

    next_ordinal: int
    set_aside: list[int]
    skipped_in_a_row: int
    config_digest: str
    data_digest: str
    tokenizer_digest: str
    data: dict[str, Any]
    segments: list[dict[str, Any]]
    reference: Literal["frozen", "ema"] | None
    torch: str
    sampled: NotRequired[dict[str, Any]]
