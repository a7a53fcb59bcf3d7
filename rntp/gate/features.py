"""What a gate looks at: the last hidden state and the entropy of the next token."""

import torch
from torch import Tensor

from rntp.rng import uniform

SIZE = 64  # of the projection: a hidden state has more directions than a few thousand gains tell
WIDTH = SIZE + 3


def features(hidden: Tensor, entropy: Tensor) -> Tensor:
    """hidden: [N, D], of the token before a position, as the head sees it. entropy: [N], nats, of
    the prediction there. Returns float64 [N, SIZE + 3]: 1, entropy, its root, and the hidden state,
    of length √D, along `SIZE` fixed random directions.
    """
    state, bounded = _of_one_length(hidden), _bounded(entropy)
    along = state @ _directions(state.shape[1])
    return torch.cat([torch.ones_like(bounded), bounded, bounded.sqrt(), along], dim=1)


def wide(hidden: Tensor, entropy: Tensor) -> Tensor:
    """The same with the hidden state as it is: entropy, its root, and the state of length √D;
    float32 [N, D + 2]."""
    bounded = _bounded(entropy)
    return torch.cat([bounded, bounded.sqrt(), _of_one_length(hidden)], dim=1).float()


def _of_one_length(hidden: Tensor) -> Tensor:
    state = hidden.detach().cpu().double()
    return state / state.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)


def _bounded(entropy: Tensor) -> Tensor:
    return entropy.detach().cpu().double().clamp_min(0)[:, None]


def _directions(width: int) -> Tensor:
    """float64 [D, SIZE]: the same for every model of that width; lengths are 1 on average."""
    signs = uniform(0, "gate", torch.arange(width)[:, None], torch.arange(SIZE)) < 0.5
    return torch.where(signs, -1.0, 1.0).double() / width**0.5
