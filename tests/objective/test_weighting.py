"""How much each thought and token counts: closed forms."""

import math

import pytest
import torch

from rntp.objective.weighting import (
    continuation_weights,
    correction_weights,
    denominator,
    ratio_of_sampler,
    token_weights,
)

THINK = torch.tensor([[[0.5, 0.5], [0.25, 1.0], [0.5, 1.0]]]).log()
REWARD = torch.tensor([[-1.0, 0.0, 2.5]])
ADVANTAGE = torch.tensor([[-1.5, 0.0, 1.5]])


def test_token_weights_and_denominators() -> None:
    index = torch.tensor([0, 0, 0, 0, 2, 2, 3])  # thought 1 is in another microbatch
    for kind in ("tokens", "budget"):
        assert token_weights(kind, index, torch.float64).tolist() == [1] * 7
    found = token_weights("thoughts", index, torch.float32)
    assert found.tolist() == [0.25] * 4 + [0.5] * 2 + [1]
    assert found.dtype == torch.float32
    assert found.sum() == 3  # a thought is one, however long

    sizes = {"tokens": 7, "thoughts": 3, "budget": 8}
    assert [denominator(kind, **sizes) for kind in ("tokens", "thoughts", "budget")] == [7, 3, 24]
    nothing = {"tokens": 0, "thoughts": 0, "budget": 8}
    assert [denominator(kind, **nothing) for kind in ("tokens", "thoughts", "budget")] == [1, 1, 1]
    assert token_weights("thoughts", index[:0], torch.float32).shape == (0,)


def test_importance_weights_are_truncated_on_one_side() -> None:
    ratio = torch.tensor([0.1, 1.0, 1.9, 2.1, 50.0])
    logp, index = ratio.log().requires_grad_(), torch.zeros(5, dtype=torch.int64)
    found = ratio_of_sampler(logp, torch.zeros(5), "token", index)
    weight = correction_weights(found, 2.0, (0.0, 0.0))
    torch.testing.assert_close(weight, torch.tensor([0.1, 1, 1.9, 2, 2]))
    assert not weight.requires_grad
    same = ratio_of_sampler(logp, logp, "token", index)
    torch.testing.assert_close(correction_weights(same, 1.0, (0.0, 0.0)), torch.ones(5))


def test_a_mask_drops_what_lies_far_from_the_sampler() -> None:
    ratio = torch.tensor([0.1, 0.5, 1.0, 4.0, 5.1])
    weight = correction_weights(ratio, 2.0, (0.5, 5.0))
    torch.testing.assert_close(weight, torch.tensor([0, 0.5, 1, 2, 0]))
    torch.testing.assert_close(
        correction_weights(ratio, 0.0, (0.5, 5.0)), torch.tensor([0.0, 1, 1, 1, 0])
    )


def test_the_ratio_of_a_thought_is_the_geometric_mean_of_its_tokens() -> None:
    logp = torch.tensor([8.0, 2.0, 0.25, 0.5]).log()
    index = torch.tensor([0, 0, 2, 2])  # thought 1 drew nothing here
    found = ratio_of_sampler(logp, torch.zeros(4), "thought", index)
    torch.testing.assert_close(found, torch.tensor([4.0, 4.0, 0.125**0.5, 0.125**0.5]))


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("reward", [0, 0, 2.5]),
        ("positive", [0, 0, 1]),
        ("posterior", [0.75, 0.75, 1.5]),  # 1/4, 1/4 and 1/2 of the group, three times
    ],
)
def test_continuation_weights(use: str, expected: list[float]) -> None:
    think = THINK.clone().requires_grad_()
    weight = continuation_weights(use, REWARD, ADVANTAGE, think)
    torch.testing.assert_close(weight, torch.tensor([expected], dtype=torch.float32))
    assert not weight.requires_grad
    assert continuation_weights("uniform", REWARD, ADVANTAGE, think) is None


def test_posterior_weights_are_the_gradient_of_the_bound_of_all_samples() -> None:
    """∇ log mean_i p_i = Σ_i w_i ∇ log p_i, times G over G (2503.19618)."""
    think = THINK.double().requires_grad_()
    bound = think.sum(dim=2).logsumexp(dim=1) - math.log(3)
    (expected,) = torch.autograd.grad(bound.sum(), think)
    weight = continuation_weights("posterior", REWARD, ADVANTAGE, think)
    (found,) = torch.autograd.grad((weight[:, :, None] * think).mean(dim=1).sum(), think)
    torch.testing.assert_close(found, expected)
    far = THINK - 1e4 * torch.tensor([0.0, 1, 2])[None, :, None]  # probabilities that underflow
    weight = continuation_weights("posterior", REWARD, ADVANTAGE, far)
    torch.testing.assert_close(weight, torch.tensor([[3.0, 0, 0]]))
