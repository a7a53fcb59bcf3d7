"""Named tensors as one flat tensor and back: what ranks send each other. Pure functions."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Named = Mapping[str, Tensor]


def flat_sums(parts: Named) -> Tensor:
    """Put named numbers one after the other, float64 [n]: counts are exact up to 2^53."""
    numbers = [part.detach().reshape(-1).to("cpu", torch.float64) for part in parts.values()]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *numbers])


def named_sums(flat: Tensor, like: Named) -> dict[str, Tensor]:
    """Give what `flat_sums` made of tensors of the same names and shapes back its names."""
    pieces = flat.split([part.numel() for part in like.values()])
    return {
        name: piece.view(part.shape)
        for (name, part), piece in zip(like.items(), pieces, strict=True)
    }


def to_bytes(rows: Named) -> Tensor:
    """Write named tensors as bytes, uint8 [n], behind the numbers of their rows."""
    counts = torch.tensor([len(part) for part in rows.values()], dtype=torch.int64)
    return torch.cat([_bytes(counts), *(_bytes(part) for part in rows.values())])


def from_bytes(data: Tensor, like: Named) -> dict[str, Tensor]:
    """Read what `to_bytes` wrote, of tensors that may have other numbers of rows than these.

    data: uint8, which may go on behind what was written.
    """
    begin = 8 * len(like)
    counts = data[:begin].clone().view(torch.int64).tolist()
    found = {}
    for (name, part), count in zip(like.items(), counts, strict=True):
        shape = (count, *part.shape[1:])
        end = begin + math.prod(shape) * part.element_size()
        # Copied, because a number has to begin where its size says.
        found[name] = data[begin:end].clone().view(part.dtype).view(shape)
        begin = end
    return found


def padded(flat: Tensor, length: int) -> Tensor:
    """Fill up with zeros: what is exchanged at once has one length, [length]."""
    return torch.nn.functional.pad(flat, (0, length - len(flat)))


def _bytes(part: Tensor) -> Tensor:
    return part.detach().cpu().contiguous().view(-1).view(torch.uint8)
