"""Decoding kernels in Triton's interpreter (conftest.py) against softmax over a mask, step by step
against the growing loop, and their check at start."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="triton has no wheel for this platform")

from rntp_kernels import DecodeAttention
from rntp_kernels.tree_attention import selection, triton_decode

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("ROWS", 16), ("KEYS", 16), ("OWN", 8)):
        monkeypatch.setattr(triton_decode, name, size)
    selection.check_decode.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "head", "repeat"),
    [(torch.float32, 16, 1), (torch.float32, 32, 3), (torch.bfloat16, 16, 2)],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_a_step_of_every_length(
    dtype: torch.dtype, head: int, repeat: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches that see nothing of their page, the whole of it, and none of their own past."""
    monkeypatch.setattr(triton_decode, "_pieces", lambda *_: pieces)
    selection.check_decode(CPU, dtype, head, repeat)


def test_a_step_with_a_window_a_soft_cap_and_sinks() -> None:
    selection.check_decode(CPU, torch.float32, 16, 2, (True, True, True))
    selection.check_decode(CPU, torch.float32, 16, 2, (True, False, False))


def test_a_kernel_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_decode, "LOG2_E", 1.45)
    with pytest.raises(RuntimeError, match="RNTP_TREE_ATTENTION=segmented"):
        selection.check_decode(CPU, torch.float32, 16, 1)


def test_steps_and_a_second_batch_equal_the_growing_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    documents, branches, heads, kv_heads, head, slots, budget = 2, 5, 4, 2, 16, 40, 12
    generator = torch.Generator().manual_seed(1)

    def values(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    def prefix() -> SimpleNamespace:  # what DecodeAttention takes of a PrefixRecorder: two layers
        size = documents, kv_heads, slots, head
        return SimpleNamespace(
            keys={0: values(*size), 1: values(*size)}, values={0: values(*size), 1: values(*size)}
        )

    def copy(of: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(
            keys={i: x.clone() for i, x in of.keys.items()},
            values={i: x.clone() for i, x in of.values.items()},
        )

    batches = [prefix(), prefix()]
    sees = [torch.randint(0, slots + 1, (documents, branches), generator=generator) for _ in "ab"]
    steps = [
        [values(1, n, documents * branches, head) for n in (heads, kv_heads, kv_heads)]
        for _ in range(2 * 2 * budget)
    ]

    def outputs(fixed: bool) -> list[torch.Tensor]:
        found, attention = [], None
        inputs = iter(steps)
        for batch, visible in zip(batches, sees, strict=True):
            if fixed and attention is not None:
                attention.restart(copy(batch), visible)
            else:
                attention = DecodeAttention(copy(batch), visible, budget, fixed=fixed)
            for step in range(budget):
                found += [attention(layer, *next(inputs), 0.3) for layer in (0, 1)]
                attention.advance()
                if step == 6:  # as between thoughts and answers: branches of other lengths
                    lengths = torch.arange(documents * branches).view(documents, -1) % 7
                    attention.rewind(lengths)
                if step == 10:
                    break
        return found

    growing = outputs(fixed=False)
    plain = outputs(fixed=True)
    monkeypatch.setenv(selection.OVERRIDE, "triton")
    own = outputs(fixed=True)
    assert len(own) == len(growing) == 2 * 2 * 11
    for mine, library, theirs in zip(own, plain, growing, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(library, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(torch.stack(own), torch.stack(plain))  # it was not the same way


@pytest.mark.parametrize("by", ["triton", "segmented"])
def test_some_of_the_branches_go_on_where_they_are(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight branches four, and of these two; then other four, in the lane that is there."""
    documents, branches, heads, kv_heads, head, slots, budget = 2, 8, 4, 2, 16, 40, 12
    generator = torch.Generator().manual_seed(2)

    def values(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    stored = values(2, documents, kv_heads, slots, head)
    prefix = SimpleNamespace(keys={0: stored[0]}, values={0: stored[1]})
    visible = torch.randint(0, slots + 1, (documents, branches), generator=generator)
    steps = [
        [values(1, n, documents * branches, head) for n in (heads, kv_heads, kv_heads)]
        for _ in range(9)
    ]
    every = torch.arange(branches).expand(documents, -1)
    four = torch.tensor([[0, 3, 4, 7], [1, 2, 5, 6]])
    two = torch.tensor([[1, 2], [0, 3]])  # of the four
    others = torch.tensor([[1, 3, 5, 6], [0, 2, 3, 7]])

    def step(attention: DecodeAttention, at: int, kept: torch.Tensor) -> torch.Tensor:
        rows = (kept + branches * torch.arange(documents)[:, None]).flatten()
        out = attention(0, *(x[:, :, rows] for x in steps[at]), 0.3)
        attention.advance()
        return out

    def outputs(fixed: bool) -> list[torch.Tensor]:
        wide = DecodeAttention(prefix, visible, budget, fixed=fixed)
        found = [step(wide, at, every) for at in range(3)]
        narrow = wide.narrowed(four)
        found += [step(narrow, at, four) for at in (3, 4)]
        found.append(step(narrow.narrowed(two), 5, four.gather(1, two)))
        wide.rewind(torch.full_like(visible, 2))  # back to where all branches have been
        found.append(step(wide, 6, every))
        if fixed:
            narrow.follow(wide, others)
        else:
            narrow = wide.narrowed(others)
        return found + [step(narrow, at, others) for at in (7, 8)]

    growing = outputs(fixed=False)
    monkeypatch.setenv(selection.OVERRIDE, by)
    for mine, theirs in zip(outputs(fixed=True), growing, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_what_the_kernels_do_not_take_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.zeros(1, 4, 3, 16), torch.zeros(1, 2, 3, 16)
    v = torch.zeros(1, 2, 3, 16)
    assert selection.decode_choice(q, k, v) == "segmented"  # the CPU
    monkeypatch.setenv(selection.OVERRIDE, "triton")
    assert selection.decode_choice(q, k, v) == "triton"
    assert selection.decode_choice(q[..., :8], k[..., :8], v[..., :8]) == "segmented"
    assert selection.decode_choice(q, k, v[..., :8]) == "segmented"
    assert selection.decode_choice(q.double(), k.double(), v.double()) == "segmented"
