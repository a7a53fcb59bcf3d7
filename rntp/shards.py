"""Tensors in a folder of safetensors files, written and read by any number of ranks.

torch.distributed.checkpoint plans who writes and who reads which part; the header of every file
says where its parts lie in the whole, so that nothing else, and no pickle, is needed to read them.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from rntp.ranks import Ranks

# A file is put together in memory before it is written: that is what it takes beside the tensors.
FILE_BYTES = 1 << 30


def write(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> list[Path]:
    """Write tensors and shards by name, and flush them to the disk; the files of this rank.

    Whole tensors, which all ranks have, are written by one of them. A collective: if it fails on
    one rank, it raises OSError on all.
    """
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_files(tensors), save_distributed=True
    )
    with _errors_of_the_disk():
        dcp.save(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=writer,
            process_group=ranks.talk,
            no_dist=ranks.alone,
        )
    return sorted(folder.glob(f"shard-{ranks.rank + 1:05d}-*.safetensors"))


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
    """By name, from the headers alone."""
    return {name: list(facts.size) for name, facts in _facts(folder)}


def _facts(folder: Path) -> Iterator[tuple[str, TensorStorageMetadata]]:
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
        if not isinstance(first, OSError | SafetensorError | RuntimeError | ValueError | KeyError):
            raise
        raise OSError(f"rank {rank}: {first}") from error
    except SafetensorError as error:
        raise OSError(str(error)) from error
