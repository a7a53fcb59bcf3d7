"""A shuffled, endless order of items that needs no stored state.

Pass number = ordinal // num_items. Within a pass, the position goes through a keyed permutation: a
balanced Feistel network on the next power of four, with cycle walking back into the range (Black &
Rogaway, "Ciphers with arbitrary finite domains", 2002). Any ordinal is answered in O(1) time and
memory, so a resume at any ordinal, on any number of ranks, sees the same order.
"""

import hashlib
from collections.abc import Collection
from functools import lru_cache

VERSION = 1
"""Part of a checkpoint: raise it with any change of what an ordinal gives."""

_ROUNDS = 8
_MASK = (1 << 64) - 1


class Order:
    """`order[ordinal]` is (item, visit) with item in 0 … num_items-1.

    Every item comes once in each pass; visit is the number of the pass, from 0: how often the item
    had come before. Each pass has its own permutation.
    """

    def __init__(self, num_items: int, seed: int) -> None:
        if num_items < 1:
            raise ValueError(f"an order needs at least one item, not {num_items}")
        self.num_items = num_items
        self.seed = seed
        bits = max((num_items - 1).bit_length(), 2)
        self._half_bits = (bits + 1) // 2

    def __getitem__(self, ordinal: int) -> tuple[int, int]:
        if ordinal < 0:
            raise ValueError(f"an ordinal counts from 0, not {ordinal}")
        visit, position = divmod(ordinal, self.num_items)
        keys = _keys(self.seed, visit)
        item = self._permute(position, keys)
        # The network permutes a range of up to four times num_items. Following its cycle from a
        # point inside 0 … num_items-1 always comes back inside, and stays a bijection.
        while item >= self.num_items:
            item = self._permute(item, keys)
        return item, visit

    def _permute(self, value: int, keys: tuple[int, ...]) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & mask
        for key in keys:
            # SplitMix64's finaliser (Steele et al., OOPSLA 2014): 64 bits to 64 well-mixed bits.
            mixed = (key + right) & _MASK
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
            left, right = right, left ^ ((mixed ^ (mixed >> 31)) & mask)
        return (left << self._half_bits) | right


@lru_cache(maxsize=256)
def _keys(seed: int, visit: int) -> tuple[int, ...]:
    """Of the rounds of one pass."""
    digest = hashlib.blake2b(f"{seed}/order/{visit}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    return tuple(key + number * 0x9E3779B97F4A7C15 for number in range(_ROUNDS))


def ordinals_without(excluded: Collection[int], start: int, count: int) -> list[int]:
    """`count` ordinals of 0, 1, 2, … without those set aside, from the `start`-th of them on."""
    here = start
    for ordinal in sorted(excluded):
        if ordinal <= here:
            here += 1
    found: list[int] = []
    while len(found) < count:
        if here not in excluded:
            found.append(here)
        here += 1
    return found
