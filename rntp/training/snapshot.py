"""Tensors that are written to the disk while training goes on, copied only where that is in time.

Sampling, forward and backward change nothing that a checkpoint has, so a save writes the tensors
themselves, and lets go of each as soon as it is on the disk. When the next update comes, what is
left is copied, the last to be written first, and the update goes on at once; where copies may take
only so much memory, it waits until the rest is written. So a save whose writing takes no longer
than a step costs no memory and no time, and any other costs one of the two, as the user chose.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Condition

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from rntp.run.checkpoint import Tensors
from rntp.run.checkpoint_shards import Source

_Key = tuple[str, str]  # stem and name


class Snapshot:
    """Of the tensors of one save. copies_bytes: memory that copies may take, this rank's; None is
    all that is needed. copied_bytes: what they took."""

    def __init__(self, tensors: Tensors, copies_bytes: float | None = None) -> None:
        self.copied_bytes = 0
        self._room = float("inf") if copies_bytes is None else copies_bytes
        self._live: dict[_Key, Tensor] = {  # in the order of writing; of shards, this rank's
            (stem, name): tensor.to_local() if isinstance(tensor, DTensor) else tensor
            for stem, group in tensors.items()
            for name, tensor in group.items()
        }
        self._writing: set[_Key] = set()  # of the live ones
        self._copies: dict[_Key, Tensor] = {}
        self._changed = Condition()

    def of(self, stem: str) -> Source:
        """Give the tensors of a stem to what writes them."""
        return _OfStem(self, stem)

    @contextmanager
    def reading(self, stem: str, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
        """Give the copies that stand for tensors by now; the others do not change meanwhile.

        Behind it they are written: nothing holds on to them.
        """
        keys = [(stem, name) for name in names]
        with self._changed:
            self._writing.update(key for key in keys if key in self._live)
            found = {key[1]: self._copies[key] for key in keys if key in self._copies}
        try:
            yield found
        finally:
            del found
            self._forget(keys)

    def keep(self, stem: str, names: Sequence[str]) -> None:
        """Let go of all of a stem but these: other ranks write it."""
        kept = {(stem, name) for name in names}
        with self._changed:
            keys = [k for k in (*self._live, *self._copies) if k[0] == stem and k not in kept]
        self._forget(keys)

    def close(self) -> None:
        """Let go of everything: the save has come to its end, well or not."""
        self._forget([*self._live, *self._copies])

    @torch.no_grad()
    def let_change(self) -> None:
        """Copy what is not written yet, or wait for it: afterwards all tensors may change."""
        with self._changed:
            while self._live:
                key = next(
                    (
                        key
                        for key in reversed(self._live)
                        if key not in self._writing and self._live[key].nbytes <= self._room
                    ),
                    None,
                )
                if key is None:
                    self._changed.wait()
                    continue
                copy = self._live.pop(key).detach().to("cpu", copy=True)
                self._copies[key] = copy
                self._room -= copy.nbytes
                self.copied_bytes += copy.nbytes

    def _forget(self, keys: Sequence[_Key]) -> None:
        with self._changed:
            for key in keys:
                self._live.pop(key, None)
                self._writing.discard(key)
                if (copy := self._copies.pop(key, None)) is not None:
                    self._room += copy.nbytes
            self._changed.notify_all()


class _OfStem(Source):
    def __init__(self, snapshot: Snapshot, stem: str) -> None:
        self._snapshot, self._stem = snapshot, stem

    def planned(self, names: Sequence[str]) -> None:
        self._snapshot.keep(self._stem, names)

    def reading(self, names: Sequence[str]) -> AbstractContextManager[Mapping[str, Tensor]]:
        return self._snapshot.reading(self._stem, names)
