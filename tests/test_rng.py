"""Philox4x32-10 against the published vectors, and what follows for draws."""

import subprocess
import sys

import torch

from rntp.rng import fraction, philox4x32, uniform

# Random123's known-answer tests: counter, key -> output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def test_known_answers() -> None:
    for counter, key, expected in KNOWN:
        words = tuple(torch.tensor(c, dtype=torch.int64) for c in counter)
        assert tuple(int(w) for w in philox4x32(words, key)) == expected


def test_draws_are_uniform_and_distinct() -> None:
    draws = uniform(0, "test", torch.arange(200_000))
    assert draws.dtype == torch.float64
    assert 0 <= draws.min() < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 3e-3
    assert abs(draws.var() - 1 / 12) < 1e-3
    counts = torch.histc(draws, bins=100, min=0, max=1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 150  # chi-square of 99 degrees: p < 0.001 above
    assert len(draws.unique()) == 200_000


def test_every_index_matters_and_nothing_else() -> None:
    base = {"ordinal": 7, "position": 3, "thought": 2, "token": 1}
    first = uniform(0, "a", **base)
    assert first == uniform(0, "a", **base)
    others = [uniform(1, "a", **base), uniform(0, "b", **base)]
    others += [uniform(0, "a", **{**base, name: value + 1}) for name, value in base.items()]
    others += [uniform(0, "a", **{**base, "ordinal": 7 + 2**32})]
    assert len({float(x) for x in [first, *others]}) == 8
    broadcast = uniform(0, "a", torch.tensor([6, 7]), 3, torch.tensor([[1], [2]]), 1)
    assert broadcast.shape == (2, 2)
    assert broadcast[1, 1] == first


def test_another_process_draws_the_same() -> None:
    code = "from rntp.rng import *; print(float(uniform(3, 'x', 5)), fraction('page', 'heldout'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mine = f"{float(uniform(3, 'x', 5))} {fraction('page', 'heldout')}"
    assert told.stdout.strip() == mine


def test_no_global_random_state_is_touched() -> None:
    before = torch.get_rng_state()
    uniform(0, "a", torch.arange(10))
    assert torch.equal(before, torch.get_rng_state())
