"""A sampler's side of weights: from what it has by what has changed, or from a whole version."""

from collections.abc import Callable, Mapping, Sequence

import safetensors.torch
import torch
from torch import Tensor

from rntp.rollout.store.delta import apply
from rntp.rollout.store.files import Files
from rntp.rollout.store.layout import put_new_facts
from rntp.rollout.store.manifest import (
    COMPLAINT,
    DELTA,
    PLACEMENT,
    Manifest,
    Version,
    chain,
    check_tensors,
)
from rntp.rollout.store.sealed import Refused, unseal
from rntp.rollout.store.weights import Published


class Fetcher:
    """Reads versions, and keeps the last in memory, so that it needs no more than the changes.

    say: tells people a line. size: bytes that the last version took to read.
    """

    def __init__(self, files: Files, key: bytes, say: Callable[[str], None]) -> None:
        self.size = 0
        self._files, self._key, self._say = files, key, say
        self._have: Published | None = None

    def fetch(self, number: int, digest: str) -> Published:
        """Read a version, every tensor against its hash.

        Where that cannot be done the trainer is told, who then writes the version whole. Raises
        Refused with the reason, and OSError.
        """
        version, have = Version(number, digest), self._have
        if have is not None and (have.version, have.digest) == version:
            return have
        self.size = 0
        try:
            found = self._read(version)
        except Refused as refusal:
            facts = {"why": str(refusal)}
            put_new_facts(self._files, f"{version.folder}/{COMPLAINT}", facts, self._key)
            raise
        self._have = found
        return found

    def _read(self, version: Version) -> Published:
        """By the changes where they are of what is in memory; else from the anchor."""
        have = self._have
        if have is None:
            return self._follow(chain(self._files, version, self._key), None)
        own = Version(have.version, have.digest)
        manifests = chain(self._files, version, self._key, own)
        if manifests[0].base is None:
            return self._follow(manifests, None)
        try:
            return self._follow(manifests, have.weights)
        except Refused as refusal:
            self._have = None  # what is in memory may be the reason
            self._say(f"{version.folder} is read from its anchor on ({refusal})")
            return self._follow(chain(self._files, version, self._key), None)

    def _follow(
        self, manifests: Sequence[Manifest], weights: Mapping[str, Tensor] | None
    ) -> Published:
        """Read a chain on from the weights that its first link is a difference from. A whole
        version, and what a chain comes to, is looked at bit by bit."""
        for manifest in manifests:
            if manifest.base is None:
                weights = self._whole(manifest)
            else:
                assert weights is not None
                weights = self._changed(manifest, weights)
        last = manifests[-1]
        assert weights is not None
        check_tensors(last.version, weights, last.weights)
        return Published(
            last.version.number,
            last.version.digest,
            weights,
            self._placement(last),
            torch.tensor(last.canary),
        )

    def _whole(self, manifest: Manifest) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name in manifest.files:
            weights.update(self._tensors(manifest, name))
        return weights

    def _changed(self, manifest: Manifest, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        name = f"{manifest.version.folder}/{DELTA}"
        payload = unseal(name, self._bytes(name), self._key)
        try:
            return apply(weights, payload)
        except Refused as refusal:
            raise Refused(refusal.kind, f"{name} is not used ({refusal})") from refusal

    def _placement(self, manifest: Manifest) -> dict[str, Tensor]:
        if not manifest.placement:
            return {}
        placement = self._tensors(manifest, PLACEMENT)
        check_tensors(manifest.version, placement, manifest.placement)
        return placement

    def _tensors(self, manifest: Manifest, name: str) -> dict[str, Tensor]:
        full = f"{manifest.version.folder}/{name}"
        data = self._bytes(full)
        try:
            return safetensors.torch.load(data)
        except Exception as error:
            raise Refused("torn", f"{full} holds no tensors ({error})") from error

    def _bytes(self, name: str) -> bytes:
        data = self._files.get(name)
        if data is None:
            raise Refused("torn", f"{name} is not there")
        self.size += len(data)
        return data
