"""Where a run stands in its data: some 300 bytes of JSON, whatever the size of corpus and cluster.

Contexts are functions of their ordinals, so the state is only which ordinals were trained, and what
makes an ordinal mean what it does: the same file serves any number of ranks and workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rntp.data.damage import Damage
from rntp.errors import CheckpointError


@dataclass(frozen=True)
class DataState:
    """What a checkpoint keeps of the data.

    corpus, tokenizer: digests. documents, tokens: of the corpus, for people. order: version of the
    rule from ordinal to document. frontier: the first ordinal that is not trained. damaged:
    (corpus digest, document) of what was excluded. place: how far a live source was read (see
    `rntp.data.live_stream`); None for corpora.
    """

    corpus: str
    documents: int
    tokens: int
    tokenizer: str
    order: int
    seed: int
    frontier: int
    damaged: tuple[tuple[str, Damage], ...] = ()
    place: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        found["damaged"] = [[digest, damage.as_dict()] for digest, damage in self.damaged]
        if self.place is None:
            del found["place"]
        return found

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> "DataState":
        """Return what `as_dict` gave."""
        damaged = tuple((digest, Damage(**damage)) for digest, damage in facts["damaged"])
        known = {name: facts[name] for name in cls.__dataclass_fields__ if name in facts}
        return cls(**{**known, "damaged": damaged})

    def differences(self, now: "DataState") -> list[str]:
        """Return what makes ordinals mean something else than when this was saved, one line
        each."""
        names = {
            "corpus": "corpus",
            "documents": "documents",
            "tokens": "tokens",
            "tokenizer": "tokenizer",
            "order": "version of the order",
            "seed": "seed",
        }
        return [
            f"{text}: {_short(getattr(self, name))} there, {_short(getattr(now, name))} here"
            for name, text in names.items()
            if getattr(self, name) != getattr(now, name)
        ]


Segment = dict[str, Any]
"""Steps on the same data: step (after which it begins), corpus, tokenizer, order, frontier."""


def segments(
    state: dict[str, Any],
    now: DataState,
    step: int,
    checkpoint: object,
    *,
    accept: bool,
    more: Sequence[str] = (),
) -> list[Segment]:
    """The segments of a run that goes on after `step`, from its checkpoint's state ({} for none).

    more: differences of the data that only reading it shows, one line each.
    Raises CheckpointError with the differences where the data is not the checkpoint's, unless it
    is to be accepted: then a new segment begins.
    """
    known: list[Segment] = list(state.get("segments", ()))
    here = {"step": step, "corpus": now.corpus, "tokenizer": now.tokenizer, "order": now.order}
    if not state:
        return [here]
    if "data" in state:
        different = DataState.from_dict(state["data"]).differences(now)
    else:  # checkpoints from before there was a state of the data
        same = state["data_digest"] == now.corpus
        different = [] if same else [f"corpus: {_short(state['data_digest'])} there"]
    different = [*different, *more]
    if not different:
        return known or [{**here, "step": 0}]
    if accept:
        return [*known, here]
    raise CheckpointError(
        f"{checkpoint} was trained on other data than data.source has now:\n"
        + "\n".join(f"  {line}" for line in different)
        + "\nRestore that corpus, start a new run with --run-dir, or go on with "
        "--accept-data-change, which records it as a new segment of the run"
    )


def known_damage(state: dict[str, Any]) -> tuple[tuple[str, Damage], ...]:
    """The documents that a checkpoint had set aside."""
    return DataState.from_dict(state["data"]).damaged if "data" in state else ()


def _short(value: object) -> str:
    return value[:16] if isinstance(value, str) else str(value)
