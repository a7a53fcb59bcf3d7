"""Manifests: what a version of the weights is, and of which files it can be had.

    weights/v00000012-<digest>/weights_0000.safetensors …   whole, or
                               delta.safetensors            what has changed since version 11
                               placement.safetensors        what a placement policy has learnt
                               manifest.json                written last, sealed
                               refused.json                 why a sampler could not read it

A version is named by a digest of its tensors and not of its files, so that it is the same whether
it was written whole or not. A delta names the version that it is of, which may be one itself: such
a chain begins with a whole version, the anchor.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rntp.rollout.store.files import Files
from rntp.rollout.store.layout import DIGITS, get_facts, put_facts, weights_name
from rntp.rollout.store.sealed import Refused

MANIFEST, COMPLAINT = "manifest.json", "refused.json"
DELTA, PLACEMENT = "delta.safetensors", "placement.safetensors"

Table = dict[str, list[Any]]
"""Type, shape and SHA-256 of tensors, by name."""


class Version(NamedTuple):
    """A policy version by number and digest; its folder in the store."""

    number: int
    digest: str

    @property
    def folder(self) -> str:
        """Of all of its files."""
        return weights_name(self.number, self.digest)


@dataclass(frozen=True)
class Manifest:
    """weights, placement: tables of the tensors. files: names of those that hold weights. canary:
    log-probs that the trainer computes with them, nats. base: the version before, of which the one
    file is a difference; None for a whole version."""

    version: Version
    weights: Table
    placement: Table
    files: tuple[str, ...]
    canary: tuple[float, ...]
    base: Version | None = None

    def put(self, files: Files, key: bytes) -> None:
        """Write the manifest, over an earlier one. Raises OSError."""
        facts = {
            "version": self.version.number,
            "weights": self.weights,
            "placement": self.placement,
            "files": list(self.files),
            "canary": list(self.canary),
            "base": list(self.base) if self.base else None,
        }
        put_facts(files, f"{self.version.folder}/{MANIFEST}", facts, key)


def table_of(tensors: Mapping[str, Tensor]) -> Table:
    """Describe tensors on the CPU."""
    return {
        name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), _hash(tensor)]
        for name, tensor in tensors.items()
    }


def version_of(number: int, weights: Table, placement: Table) -> Version:
    """Name a version by what its tensors are."""
    text = json.dumps({"weights": weights, "placement": placement}, sort_keys=True)
    return Version(number, hashlib.sha256(text.encode()).hexdigest()[:DIGITS])


def check_tensors(version: Version, tensors: Mapping[str, Tensor], table: Table) -> None:
    """Raise Refused unless the tensors are those of a table, to the bit."""
    if tensors.keys() != table.keys():
        odd = sorted(tensors.keys() ^ table.keys())
        raise Refused("torn", f"{version.folder} has not the tensors of its manifest: {odd[0]} …")
    found = table_of(tensors)
    if wrong := [name for name, entry in table.items() if entry != found[name]]:
        raise Refused(
            "torn",
            f"{version.folder} has not the weights of its manifest: {wrong[0]}, {len(wrong)} of "
            f"{len(table)} tensors",
        )


def read_manifest(files: Files, version: Version, key: bytes) -> Manifest:
    """Read the manifest of a version. Raises Refused and OSError."""
    facts = get_facts(files, f"{version.folder}/{MANIFEST}", key)
    if facts is None:
        raise Refused("torn", f"{version.folder} has no manifest")
    try:
        base = Version(*facts["base"]) if facts["base"] is not None else None
        found = Manifest(
            version,
            dict(facts["weights"]),
            dict(facts["placement"]),
            tuple(facts["files"]),
            tuple(facts["canary"]),
            base,
        )
        named = version_of(facts["version"], found.weights, found.placement)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("malformed", f"the manifest of {version.folder} is none") from error
    if named != version:
        raise Refused("foreign", f"the manifest of {version.folder} is of other weights")
    if base is not None and not _may_follow(version, base):
        raise Refused("malformed", f"{version.folder} is said to be a difference from {base}")
    return found


def chain(
    files: Files, version: Version, key: bytes, have: Version | None = None
) -> list[Manifest]:
    """Manifests by which a version can be had, in order: the first is whole, or a difference from
    the version `have`. Raises Refused where one is missing, and OSError."""
    found = [read_manifest(files, version, key)]
    while (base := found[-1].base) is not None and base != have:
        try:
            found.append(read_manifest(files, base, key))
        except Refused as refusal:
            raise Refused(
                refusal.kind,
                f"{version.folder} is a difference that goes back to {base.folder}, and that is "
                f"not to be had ({refusal})",
            ) from refusal
    return found[::-1]


def placement_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a placement policy has learnt, as it is written and hashed."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _may_follow(version: Version, base: Version) -> bool:
    """A difference is from the version before: so chains end, and are pruned by their numbers."""
    named = isinstance(base.digest, str) and re.fullmatch(r"[0-9a-f]+", base.digest) is not None
    return named and base.number == version.number - 1


def _hash(tensor: Tensor) -> str:
    bits = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(bits.data).hexdigest()
