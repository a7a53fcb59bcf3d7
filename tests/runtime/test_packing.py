"""Named tensors as flat ones and back, and what ranks make of them."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_run
from many_ranks import run_ranks, values

from rntp.config import Config
from rntp.errors import DataError, RanksLost
from rntp.runtime.packing import flat_sums, from_bytes, named_sums, padded, to_bytes
from rntp.runtime.ranks import SINGLE_RANK, open_ranks


def rows(n: int) -> dict[str, torch.Tensor]:
    """n rows of three types, of which no number of bytes divides the other."""
    return {
        "flags": torch.arange(n * 3).view(n, 3) % 2 == 0,
        "numbers": torch.linspace(-1, 1, n, dtype=torch.float64) / 3,
        "ids": torch.arange(n, dtype=torch.int64) + (1 << 62),
        "none": torch.zeros(n, 0),
    }


def test_sums_keep_names_shapes_and_large_counts() -> None:
    parts = {"a": torch.tensor(2**53 - 1), "b": torch.ones(2, 3, dtype=torch.float32), "c": True}
    parts["c"] = torch.tensor(True)
    flat = flat_sums(parts)
    assert flat.dtype == torch.float64
    assert flat.tolist() == [2**53 - 1, *[1.0] * 6, 1.0]
    found = named_sums(2 * flat, parts)
    assert found["b"].tolist() == [[2.0] * 3] * 2
    assert int(found["a"]) == 2 * (2**53 - 1)
    assert found["a"].shape == ()
    assert flat_sums({}).shape == (0,)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_rows_come_back_as_they_were(n: int) -> None:
    wanted = rows(n)
    wanted["numbers"][:1] = float("nan")
    data = to_bytes(wanted)
    assert data.dtype == torch.uint8
    found = from_bytes(padded(data, len(data) + 7), rows(3))
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_one_rank_adds_up_alone() -> None:
    assert SINGLE_RANK.total(lambda: {"a": torch.tensor(3)}, "x")["a"].dtype == torch.float64
    [found] = SINGLE_RANK.gather_rows(lambda: rows(2), "x")
    assert torch.equal(found["ids"], rows(2)["ids"])
    assert SINGLE_RANK.to_first(torch.arange(2), 3)[0].tolist() == [0, 1, 0]
    with pytest.raises(DataError):
        SINGLE_RANK.total(no_data, "x")


def no_data() -> dict[str, torch.Tensor]:
    raise DataError("no")


@pytest.mark.slow
def test_three_ranks_add_up_gather_and_fail_together(tmp_path: Path) -> None:
    found = values(run_ranks(3, tmp_path, exchanges, tmp_path))
    for rank, (total, ids, at_first, told) in enumerate(found):
        assert total == [6.0, 3.0]  # 1 + 2 + 3, and a one of each
        assert ids == [[], [0], [0, 1]]  # rank n has n rows
        assert at_first == ([[0, 0], [1, 0], [2, 2]] if rank == 0 else [])
        assert told == ["page 7 is gone"] * 3 + ["between 1 and 2 numbers"]


def exchanges(folder: Path) -> tuple[list, list, list, list[str]]:
    with open_ranks(Config.parse(tiny_run(folder, folder, folder))) as ranks:
        rank = ranks.rank

        def numbers() -> dict[str, torch.Tensor]:
            return {"rank": torch.full((1, 1), rank + 1), "one": torch.ones(1)}

        total = torch.cat([part.view(-1) for part in ranks.total(numbers, "a").values()])
        some = ranks.gather_rows(lambda: {"ids": torch.arange(rank)}, "b")
        first = ranks.to_first(torch.full((rank or 1,), rank, dtype=torch.int32), 2)

        def failing() -> dict[str, torch.Tensor]:
            if rank == 1:
                raise DataError("page 7 is gone")
            return numbers()

        told = []
        for exchange in (ranks.total, ranks.gather_rows, ranks.agree):
            try:
                exchange(failing, "c")
            except DataError as error:
                told.append(str(error))
        try:
            ranks.total(lambda: {"": torch.ones(2 if rank else 1)}, "d")
        except RanksLost as error:
            told.append(str(error)[11:35].strip())
        ids = [part["ids"].tolist() for part in some]
        return total.tolist(), ids, [part.tolist() for part in first], told
