"""What has changed between two versions of the weights, to the bit.

At the rates of RL most bfloat16 weights come out of an update as they were: the change is less than
half of their last bit. What is left are the places of those that moved, as distances from the one
before, and the exclusive or of old and new bits. Both are cut into planes of bytes of equal rank,
which deflate (RFC 1951) packs well: distances are short, and a weight that moves mostly does so by
its last bits. The bits come back exactly, whatever they mean: signed zeros and NaN, too.

    at         uint8: places, as numbers of unchanged elements before each; 4 planes, deflated
    by.<size>  uint8: exclusive or of elements of so many bytes; as many planes, deflated
    facts      counts: pairs of a tensor's name and how many of its elements have changed
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rntp.rollout.store.sealed import Refused, pack, unpack

MOST_CHANGED = 0.25
"""Share of the elements above which a difference is not worth its packing: whole weights are sent
faster than that much is packed and unpacked."""
LEVEL = 1  # of deflate: what is left to find for a higher one costs more than its bytes save
_AT = "<u4"
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Array = np.ndarray[Any, np.dtype[Any]]


class Difference(NamedTuple):
    """payload: the bytes to send; None where whole weights are better. share: of the elements that
    have changed, 0 to 1."""

    payload: bytes | None
    share: float


def difference(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> Difference:
    """Write what makes `new` of `old`: tensors of the same names, shapes and types, on the CPU."""
    if not _alike(old, new):
        return Difference(None, 1.0)
    total = sum(tensor.numel() for tensor in new.values())
    counts: list[tuple[str, int]] = []
    at: list[Array] = []
    by: dict[int, list[Array]] = {}
    changed = 0
    for name, tensor in new.items():
        both = torch.bitwise_xor(_bits(old[name]), _bits(tensor))
        count = int(both.count_nonzero())
        changed += count
        if not count or changed > MOST_CHANGED * total:
            continue
        where = both.nonzero().flatten()
        gaps = where.diff(prepend=torch.tensor([-1])) - 1
        if int(gaps.max()) > np.iinfo(_AT).max:  # in a tensor of more elements than that
            return Difference(None, 1.0)
        counts.append((name, count))
        at.append(gaps.numpy().astype(_AT))
        by.setdefault(tensor.element_size(), []).append(both[where].numpy())
    share = changed / max(total, 1)
    if changed > MOST_CHANGED * total:
        return Difference(None, share)
    streams = {"at": _deflate(at, np.dtype(_AT))}
    for size, values in by.items():
        streams[f"by.{size}"] = _deflate(values, np.dtype(f"<u{size}"))
    return Difference(pack(streams, {"counts": counts}), share)


def apply(old: Mapping[str, Tensor], payload: bytes) -> dict[str, Tensor]:
    """Make the newer tensors of the older ones, which stay as they are. Tensors without a change
    are the same objects. Raises Refused for what `difference` has not written for such tensors."""
    streams, facts = unpack(payload)
    try:
        return _apply(old, streams, facts["counts"])
    except Refused:
        raise
    except Exception as error:
        raise Refused("malformed", f"a difference that does not fit ({error})") from error


def _apply(
    old: Mapping[str, Tensor], streams: Mapping[str, Tensor], counts: Sequence[tuple[str, int]]
) -> dict[str, Tensor]:
    sizes: dict[int, int] = {}
    for name, count in counts:
        if not 0 < count <= old[name].numel():
            raise Refused("malformed", f"{count} changes in {name}")
        size = old[name].element_size()
        sizes[size] = sizes.get(size, 0) + count
    at = _inflate(streams["at"], sum(sizes.values()), np.dtype(_AT)).astype(np.int64)
    by = {
        size: _inflate(streams[f"by.{size}"], count, np.dtype(f"<u{size}"))
        for size, count in sizes.items()
    }
    new, first, firsts = dict(old), 0, dict.fromkeys(sizes, 0)
    for name, count in counts:
        tensor = old[name]
        where = np.cumsum(at[first : first + count] + 1) - 1
        if where[-1] >= tensor.numel():
            raise Refused("malformed", f"a change behind the end of {name}")
        size = tensor.element_size()
        bits = _bits(tensor).clone()
        elements = bits.numpy().view(f"<u{size}")
        elements[where] ^= by[size][firsts[size] : firsts[size] + count]
        new[name] = bits.view(tensor.dtype).view(tensor.shape)
        first, firsts[size] = first + count, firsts[size] + count
    return new


def _alike(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> bool:
    return old.keys() == new.keys() and all(
        (old[name].shape, old[name].dtype) == (tensor.shape, tensor.dtype)
        for name, tensor in new.items()
    )


def _bits(tensor: Tensor) -> Tensor:
    """The elements as integers of their size, [elements]; of the same memory."""
    return tensor.contiguous().reshape(-1).view(_INTEGER[tensor.element_size()])


def _deflate(parts: Sequence[Array], kind: np.dtype[Any]) -> Tensor:
    """Pack numbers plane by plane: first all lowest bytes, then the next."""
    whole = np.concatenate([np.zeros(0, kind), *(part.view(kind) for part in parts)])
    planes = np.ascontiguousarray(whole.view(np.uint8).reshape(-1, kind.itemsize).T)
    return torch.frombuffer(bytearray(zlib.compress(planes.data, LEVEL)), dtype=torch.uint8)


def _inflate(packed: Tensor, count: int, kind: np.dtype[Any]) -> Array:
    """Unpack exactly so many numbers; a stream that would give more is not followed."""
    size = count * kind.itemsize
    inflater = zlib.decompressobj()
    data = inflater.decompress(packed.numpy().tobytes(), size + 1)
    if len(data) != size or not inflater.eof:
        raise Refused("malformed", f"a difference of {count} elements that has not as many")
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, count)
    return np.ascontiguousarray(planes.T).reshape(-1).view(kind)
