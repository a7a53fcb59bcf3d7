"""Tensors in a folder of safetensors files, written and read by any number of ranks.

torch.distributed.checkpoint plans who writes and who reads which part; the header of every file
says where its parts lie in the whole, so that nothing else, and no pickle, is needed to read them.
"""

import json
import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from rntp.runtime.ranks import Ranks

FILE_BYTES = 4 << 30  # of all ranks' shards together; a file has one rank's
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# What DCP raises for files that are not there, not whole or of other tensors.
_OF_THE_DISK = (OSError, RuntimeError, ValueError, KeyError, AssertionError)
_Part = tuple[str, torch.Size, Tensor]  # name, where it lies in the whole tensor, numbers


class Source:
    """Where the numbers of tensors are while they are written: in the tensors, which nobody changes
    meanwhile. `rntp.training.snapshot` has another."""

    def planned(self, names: Sequence[str]) -> None:
        """Be told what this rank writes, before it does; the others are not read here."""

    def reading(self, names: Sequence[str]) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Give, while these are written into one file, what stands for some of them."""
        return nullcontext({})


def write(
    folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks, source: Source | None = None
) -> list[Path]:
    """Write tensors and shards by name, and flush them to the disk; the files of this rank.

    Whole tensors, which all ranks have, are written by one of them. A collective: if it fails on
    one rank, it raises OSError on all.
    """
    writer = _Writer(folder, _files(tensors), ranks.rank, source or Source())
    with _errors_of_the_disk():
        dcp.save(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=writer,
            process_group=ranks.talk,
            no_dist=ranks.alone,
        )
    return writer.paths


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors in full, on the CPU."""
    found = {name: torch.empty(f.size, dtype=f.properties.dtype) for name, f in _facts(folder)}
    read_into(folder, found)
    return found


def read_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors in place by name; of a shard, this rank's part is read and nothing else.

    Raises OSError if the folder has no such tensor, or one of another shape.
    """
    with _errors_of_the_disk():
        dcp.load(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=True,  # every rank finds its parts by itself
        )


def shapes(folder: Path) -> dict[str, list[int]]:
    """Return shapes by name of the tensor, from the headers alone: nothing is loaded."""
    return {name: list(facts.size) for name, facts in _facts(folder)}


class _Writer(StorageWriter):
    """Writes what is planned for a rank into the files that `HuggingFaceStorageReader` reads.

    files: which one every tensor goes to, from 1. torch's own writer puts a file together in memory
    before it writes it, twice, and has the names in another order every time.
    """

    def __init__(self, folder: Path, files: Mapping[str, int], rank: int, source: Source) -> None:
        self.paths: list[Path] = []
        self._folder, self._files, self._rank, self._source = folder, files, rank, source

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        found: list[WriteResult] = []
        last = max(self._files.values())
        self._source.planned([item.index.fqn for item in plan.items])
        for number in range(1, last + 1):
            items = [item for item in plan.items if self._files[item.index.fqn] == number]
            if not items:
                continue
            name = f"shard-{self._rank + 1:05d}-model-{number:05d}-of-{last:05d}.safetensors"
            self.paths.append(self._folder / name)
            with self._source.reading([item.index.fqn for item in items]) as others:
                parts = [_part(item, planner, others) for item in items]
                _write_file(self.paths[-1], parts)
            sizes = [tensor.nbytes for _, _, tensor in parts]
            found += [WriteResult(i.index, n, name) for i, n in zip(items, sizes, strict=True)]
        done: Future[list[WriteResult]] = Future()
        done.set_result(found)
        return done

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: one of these writes once."""

    def set_up_storage_writer(self, is_coordinator: bool, *more: Any, **named: Any) -> None:
        """Nothing: the folder is there."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing: what there is to know stands in the headers."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _part(item: WriteItem, planner: SavePlanner, others: Mapping[str, Tensor]) -> _Part:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor)
    assert item.tensor_data is not None
    other = others.get(item.index.fqn, tensor)
    assert other.shape == tensor.shape
    return item.index.fqn, item.tensor_data.chunk.offsets, other


def _write_file(path: Path, parts: Sequence[_Part]) -> None:
    """A safetensors file, from the memory in which the tensors are; flushed to the disk."""
    # Wide numbers first, so that all of them lie at multiples of their size.
    parts = sorted(parts, key=lambda part: (-part[2].element_size(), part[0]))
    header: dict[str, Any] = {}
    offsets, end = {}, 0
    for name, offset, tensor in parts:
        assert name not in header, "a rank has one part of a tensor"
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        offsets[name] = {"saved_offsets": list(offset)}
    facts = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    head = json.dumps({"__metadata__": facts, **header}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb", buffering=0) as file:
        _write_all(file, struct.pack("<Q", len(head)) + head)
        for _, _, tensor in parts:
            flat = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
            _write_all(file, flat.numpy().data)
        os.fsync(file.fileno())


def _write_all(file: RawIOBase, content: bytes | memoryview) -> None:
    """A disk that is full may take a part before it says so."""
    rest = memoryview(content)
    while len(rest):
        rest = rest[file.write(rest) :]


def _facts(folder: Path) -> Iterator[tuple[str, TensorStorageMetadata]]:
    with _errors_of_the_disk():
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    for name, facts in found.items():
        assert isinstance(facts, TensorStorageMetadata)
        yield name, facts


def _files(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file every tensor goes to, from 1; alike on all ranks."""
    number, size, found = 1, 0, {}
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if size and size + own > FILE_BYTES:
            number, size = number + 1, 0
        size += own
        found[name] = number
    return found


@contextmanager
def _errors_of_the_disk() -> Iterator[None]:
    """What DCP collects from the ranks, which is no Exception, as the OSError it was."""
    try:
        with warnings.catch_warnings():
            # It warns where there is one rank, and of private names of its own.
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as error:
        rank, (first, _) = min(error.failures.items(), key=lambda item: item[0])
        if not isinstance(first, (*_OF_THE_DISK, SafetensorError)):
            raise
        raise OSError(f"rank {rank}: {first}") from error
    except SafetensorError as error:
        raise OSError(str(error)) from error
