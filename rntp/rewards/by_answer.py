"""For the schemes that compare each answer with the true text."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rntp.types import RewardInputs


def by_answer(
    inputs: RewardInputs, truths: Sequence[Tensor], score: Callable[[Tensor, Tensor], float]
) -> Tensor:
    """float32 [P, G]: score(answer ids, true ids) of every answer. truths: [P] id tensors."""
    scores = [
        [score(ids, truth) for ids in group]
        for group, truth in zip(inputs.answer_ids, truths, strict=True)
    ]
    shape, device = inputs.num_tokens_PG.shape, inputs.num_tokens_PG.device
    return torch.tensor(scores, dtype=torch.float32, device=device).view(shape)
