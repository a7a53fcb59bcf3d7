"""Schedule, master weights, clipping, and what a non-finite step leaves behind."""

import pytest
import torch
from torch import nn

from rntp.config import Optim
from rntp.training.optimizer import Optimizer, learning_rate


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 1))


def backward(net: nn.Module, scale: float = 1.0) -> None:
    dtype = next(net.parameters()).dtype
    x = torch.linspace(-1, 1, 24, dtype=dtype).view(4, 6)
    (net(x).square().sum() * scale).backward()


def filled_from(saved: dict[str, dict[str, torch.Tensor]]):
    @torch.no_grad()
    def fill(stem: str, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(saved[stem][name])

    return fill


def test_schedules() -> None:
    constant = Optim(lr=1.0, warmup_steps=3)
    assert [learning_rate(constant, s, 10) for s in (1, 2, 3, 4, 10)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = Optim(lr=1.0, schedule={"cosine": {"min_lr_fraction": 0.2}}, warmup_steps=0)
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.6)
    assert learning_rate(cosine, 10, 10) == pytest.approx(0.2)
    assert learning_rate(cosine, 99, 10) == pytest.approx(0.2)


def test_float32_is_plain_adamw() -> None:
    ours, theirs = model(), model()
    config = Optim(lr=1e-2, max_grad_norm=1e9, adamw={"weight_decay": 0.1, "betas": (0.9, 0.9)})
    optimizer = Optimizer(ours, config, dtype=torch.float32, total_steps=3)
    plain = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.9),
    )
    for step in (1, 2, 3):
        backward(ours)
        backward(theirs)
        optimizer.step(step, loss_is_finite=True)
        plain.step()
        plain.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_bfloat16_keeps_masters_that_small_updates_move() -> None:
    net = model()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = Optimizer(net, Optim(lr=1e-5), dtype=torch.bfloat16, total_steps=5)
    for step in range(1, 6):
        backward(net)
        optimizer.step(step, loss_is_finite=True)
    for before, master, copy in zip(
        start, optimizer.masters.values(), net.parameters(), strict=True
    ):
        assert master.dtype == torch.float32
        moved = (master - before).abs()
        assert 3e-5 < moved.max() < 7e-5  # five updates, each far below a bfloat16 step
        assert copy.dtype == torch.bfloat16
        assert torch.equal(copy, master.bfloat16())


def test_gradients_add_up_in_float32() -> None:
    net = model()
    optimizer = Optimizer(net, Optim(), dtype=torch.bfloat16, total_steps=1)
    backward(net)
    one = {name: m.grad.clone() for name, m in optimizer.masters.items()}
    for _ in range(511):
        backward(net)
    for name, master in optimizer.masters.items():
        assert master.grad.dtype == torch.float32
        torch.testing.assert_close(master.grad, one[name] * 512)  # bfloat16 stalls at 256
    assert all(p.grad is None for p in net.parameters())


def test_clipping() -> None:
    net = model()
    optimizer = Optimizer(net, Optim(lr=1.0), dtype=torch.float32, total_steps=1)
    backward(net, 1000.0)
    exact = torch.stack([p.grad.norm() for p in net.parameters()]).norm()
    update = optimizer.step(1, loss_is_finite=True)
    assert update.grad_norm == pytest.approx(float(exact))
    assert update.grad_norm > 10
    assert not update.skipped


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "loss"])
def test_a_non_finite_step_changes_no_bit(bad: float | str, dtype: torch.dtype) -> None:
    net = model()
    optimizer = Optimizer(net, Optim(lr=1e-2), dtype=dtype, total_steps=9)
    backward(net)
    optimizer.step(1, loss_is_finite=True)
    masters = {name: m.detach().clone() for name, m in optimizer.masters.items()}
    moments = {name: m.clone() for name, m in optimizer.moments().items()}
    backward(net)
    if bad != "loss":
        next(iter(optimizer.masters.values())).grad[0, 0] = bad
    update = optimizer.step(2, loss_is_finite=bad != "loss")
    assert update.skipped
    for name, master in optimizer.masters.items():
        assert torch.equal(master, masters[name])
        assert master.grad is None  # nothing of it reaches the next step
    for name, moment in optimizer.moments().items():
        assert torch.equal(moment, moments[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_continues_bit_for_bit(dtype: torch.dtype) -> None:
    first = model()
    optimizer = Optimizer(first, Optim(lr=1e-2), dtype=dtype, total_steps=9)
    for step in (1, 2):
        backward(first)
        optimizer.step(step, loss_is_finite=True)
    masters = {name: m.detach().clone() for name, m in optimizer.masters.items()}
    moments = {name: m.clone() for name, m in optimizer.moments().items()}
    second = model()
    restored = Optimizer(second, Optim(lr=1e-2), dtype=dtype, total_steps=9)
    restored.restore(filled_from({"weights": masters, "moments": moments}))
    for net, it in ((first, optimizer), (second, restored)):
        backward(net)
        it.step(3, loss_is_finite=True)
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(KeyError):
        restored.restore(filled_from({"weights": {}, "moments": {}}))
