"""Counter-based randomness: every draw is a pure function of what it is for.

A draw depends on (run seed, purpose, ordinal, position, thought, token index) and on nothing else,
so the same thought is sampled after a resume, on another rank, or beside other documents, and no
generator state has to be saved. The generator is Philox4x32-10 (Salmon et al., SC 2011), written
in int64 tensor arithmetic so that it runs on any device without a host synchronisation.
"""

import hashlib

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Index = int | Tensor


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words (as int64 tensors) for four 32-bit counter words and a 64-bit key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64; the masks take the right 32 bits all the same.
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        high0, low0 = (p0 >> 32) & _MASK, p0 & _MASK
        high1, low1 = (p1 >> 32) & _MASK, p1 & _MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(
    seed: int,
    purpose: str,
    ordinal: Index,
    position: Index = 0,
    thought: Index = 0,
    token: Index = 0,
) -> Tensor:
    """Uniform float64 draws in [0, 1), one for each element of the broadcast indices.

    `ordinal` may use 64 bits, `position` 32, `thought` and `token` 16 each: no two index tuples in
    that range share a counter. `purpose` names the stream ("placement", "thought", …).
    """
    given = (ordinal, position, thought, token)
    device = next((i.device for i in given if isinstance(i, Tensor)), None)
    n, p, g, t = torch.broadcast_tensors(
        *(torch.as_tensor(i, dtype=torch.int64, device=device) for i in given)
    )
    counter = (n & _MASK, (n >> 32) & _MASK, p & _MASK, ((g & 0xFFFF) << 16) | (t & 0xFFFF))
    a, b, _, _ = philox4x32(counter, _key(seed, purpose))
    # 53 random bits fill a float64 mantissa: 27 from one word, 26 from the next.
    return ((a >> 5) * 67108864 + (b >> 6)).to(torch.float64) / 9007199254740992.0


def hashed(
    seed: int, purpose: str, ordinal: Index, position: Index = 0, thought: Index = 0
) -> Tensor:
    """Hash the indices to int64 in [0, 2^63), as `uniform` draws: seeds for generators of others,
    of which no two are alike but by chance (2^-63)."""
    given = (ordinal, position, thought)
    n, p, g = torch.broadcast_tensors(*(torch.as_tensor(i, dtype=torch.int64) for i in given))
    counter = (n & _MASK, (n >> 32) & _MASK, p & _MASK, (g & 0xFFFF) << 16)
    a, b, _, _ = philox4x32(counter, _key(seed, purpose))
    return ((a >> 1) << 32) | b


def one(seed: int, purpose: str, ordinal: int) -> float:
    """`uniform(seed, purpose, ordinal).item()`, fifty times as fast: for one draw a context."""
    c0, c1, c2, c3 = ordinal & _MASK, (ordinal >> 32) & _MASK, 0, 0
    k0, k1 = _key(seed, purpose)
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK
        c2, c3 = ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return ((c0 >> 5) * 67108864 + (c1 >> 6)) / 9007199254740992.0


def fraction(text: str, purpose: str) -> float:
    """A fixed number in [0, 1) for a name, the same in every run: for splits by document id."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=purpose.encode()[:16]).digest()
    return int.from_bytes(digest, "little") / 2**64


def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
