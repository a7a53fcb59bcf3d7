"""The trainer's side of weights: versions are written whole, or as what has changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch
from torch import Tensor

from rntp.rollout.store.delta import Difference, difference
from rntp.rollout.store.files import Files
from rntp.rollout.store.layout import get_facts
from rntp.rollout.store.manifest import (
    COMPLAINT,
    DELTA,
    PLACEMENT,
    Manifest,
    Table,
    Version,
    chain,
    placement_of,
    table_of,
    version_of,
)
from rntp.rollout.store.sealed import Refused, seal
from rntp.runtime.faults import fault_point

_FILE_BYTES = 256 << 20  # of one file of weights, about


class Written(NamedTuple):
    """What a publication took. how: "there" where an earlier start has written the version. size:
    bytes of its weights as written. changed: share of elements that are not those of the version
    before; None where nothing was compared."""

    how: Literal["whole", "delta", "there"]
    size: int
    changed: float | None


@dataclass(frozen=True)
class Draft:
    """A version that is ready to be written. change: from `base`, where that can be had."""

    version: Version
    weights: Mapping[str, Tensor]
    placement: Mapping[str, Tensor]
    tables: tuple[Table, Table]
    canary: tuple[float, ...]
    base: Version | None = None
    change: Difference | None = None


class Publisher:
    """Writes the versions of one run, and keeps a copy of the last to compare the next with it.

    whole_every: versions from a whole one to the next, at most; 1: all are whole.
    """

    def __init__(self, files: Files, key: bytes, whole_every: int) -> None:
        self._files, self._key, self._whole_every = files, key, whole_every
        self._last: Draft | None = None
        self._anchors: dict[Version, int] = {}

    def draft(
        self,
        number: int,
        weights: Mapping[str, Tensor],
        placement: Mapping[str, Tensor],
        canary: Tensor,
    ) -> Draft:
        """Copy the weights as they are, and find what has changed. canary: theirs, [60]."""
        mine = {name: _copy(tensor) for name, tensor in weights.items()}
        learned = placement_of(placement)
        tables = table_of(mine), table_of(learned)
        version = version_of(number, *tables)
        draft = Draft(version, mine, learned, tables, tuple(canary.tolist()))
        last = self._last
        if last is None or not self._may_be_base(last.version, number):
            return draft
        return replace(draft, base=last.version, change=difference(last.weights, mine))

    def put(self, draft: Draft) -> Written:
        """Write a version, unless it is there. May be tried again. Raises OSError."""
        written = self._put(draft)
        self._last = replace(draft, base=None, change=None)
        return written

    def complaint(self) -> str | None:
        """Why a sampler could not read the last version; None where none has said so. Raises
        OSError."""
        if self._last is None:
            return None
        try:
            facts = get_facts(self._files, self._complaint(self._last), self._key)
        except Refused:
            return None
        return str(facts.get("why", "")) if facts else None

    def answer(self) -> None:
        """Write the last version again, whole, and take the complaint away. Raises OSError."""
        assert self._last is not None
        self._put_whole(self._last)
        self._files.remove(self._complaint(self._last))

    def anchor(self, version: Version) -> int:
        """The number of the whole version by which one can be had; its own where it cannot. Raises
        OSError."""
        if version not in self._anchors:
            try:
                self._anchors[version] = chain(self._files, version, self._key)[0].version.number
            except Refused:
                return version.number
        return self._anchors[version]

    def forget(self, before: int) -> None:
        """Forget versions that the store no longer has."""
        self._anchors = {v: first for v, first in self._anchors.items() if v.number >= before}

    def _put(self, draft: Draft) -> Written:
        version, change = draft.version, draft.change
        try:
            there = chain(self._files, version, self._key)
        except Refused:
            there = []  # not there, or not all of it
        if there:
            self._anchors[version] = there[0].version.number
            return Written("there", 0, change.share if change else None)
        if change is None or change.payload is None or draft.base is None:
            return self._put_whole(draft)
        if len(change.payload) >= sum(tensor.nbytes for tensor in draft.weights.values()):
            return self._put_whole(draft)
        self._put_placement(draft)
        full = f"{version.folder}/{DELTA}"
        self._files.put(full, seal(full, change.payload, self._key))
        self._finish(draft, (DELTA,), draft.base)
        self._anchors[version] = self._anchors[draft.base]
        return Written("delta", len(change.payload), change.share)

    def _put_whole(self, draft: Draft) -> Written:
        self._put_placement(draft)
        names: list[str] = []
        size = 0
        for name, part in _parts(draft.weights):
            data = safetensors.torch.save(part)
            self._files.put(f"{draft.version.folder}/{name}", data)
            names.append(name)
            size += len(data)
        self._finish(draft, tuple(names), None)
        self._anchors[draft.version] = draft.version.number
        return Written("whole", size, draft.change.share if draft.change else None)

    def _put_placement(self, draft: Draft) -> None:
        if draft.placement:
            data = safetensors.torch.save(dict(draft.placement))
            self._files.put(f"{draft.version.folder}/{PLACEMENT}", data)

    def _finish(self, draft: Draft, names: tuple[str, ...], base: Version | None) -> None:
        """Write the manifest: from then on the version is there."""
        version, where = draft.version, self._files.where
        folder = where / version.folder if isinstance(where, Path) else None
        fault_point("weights.put", files=folder)
        manifest = Manifest(version, *draft.tables, names, draft.canary, base)
        manifest.put(self._files, self._key)

    @staticmethod
    def _complaint(draft: Draft) -> str:
        return f"{draft.version.folder}/{COMPLAINT}"

    def _may_be_base(self, last: Version, number: int) -> bool:
        """The version before, unless it is time for a whole one."""
        if last.number != number - 1 or last not in self._anchors:
            return False
        return number - self._anchors[last] < self._whole_every


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _parts(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Files of about `_FILE_BYTES`, in the order of the names."""
    part: dict[str, Tensor] = {}
    number = size = 0
    for name, tensor in weights.items():
        part[name] = tensor
        size += tensor.nbytes
        if size >= _FILE_BYTES:
            yield f"weights_{number:04d}.safetensors", part
            part, number, size = {}, number + 1, 0
    if part:
        yield f"weights_{number:04d}.safetensors", part
