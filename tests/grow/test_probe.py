"""What a page is worth, from the gains of its thoughts, and thoughts at other places."""

import pytest
import torch

from rntp.grow.probe import moved, worth
from rntp.types import Context, Rollout, Thought


def test_worth_in_closed_form() -> None:
    now = torch.tensor([[0.1, 0.3], [0.2, 0.6]])
    found = worth(now, now - 0.25, torch.tensor([[0.0, -0.2], [0.4, 0.2]]))
    assert found["gain"] == pytest.approx(0.3)
    assert found["spread"] == pytest.approx((0.2 + 0.4) / 2 / 2**0.5)
    assert found["change"] == pytest.approx(0.25)
    assert found["elsewhere"] == pytest.approx(0.1)


def test_each_thought_goes_to_the_next_position_and_the_last_to_the_first() -> None:
    groups = tuple((Thought(torch.tensor([n]), torch.zeros(1), True),) for n in range(3))
    positions = (2, 4, 6)
    numbers = torch.zeros(3)
    context = Context(0, "page", torch.arange(9))
    rollout = Rollout(context, positions, groups, entropy=numbers, nll=numbers)
    gone = moved(rollout)
    assert [int(group[0].sampled_ids) for group in gone.thoughts] == [2, 0, 1]
    assert gone.positions == positions
