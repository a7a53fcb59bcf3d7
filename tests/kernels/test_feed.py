"""What branches are given in one pass: against plain sequences, and between drawn tokens."""

import pytest
import torch
from rntp_kernels import DecodeAttention, TreeLayout
from rntp_kernels.tree_attention import PrefixRecorder, selection
from test_styles import KINDS, SCALE, style, unshared, values

PAGES, OWN = (13, 9), 9  # tokens of pages, and of each of their branches
VISIBLE = torch.tensor([[13, 5], [9, 1]])
LAYOUT = TreeLayout((*PAGES, *[OWN] * 4), (-1, -1, 0, 0, 1, 1), (0, 0, *VISIBLE.flatten().tolist()))
BEHIND = torch.tensor(LAYOUT.offsets[2:-1])  # the first row of each branch
STARTS, COUNTS = [2, 1, 2, 0], [5, 1, 3, 6]  # decoded before, and then fed


@pytest.fixture(params=[*KINDS, "plain"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(KINDS, "plain", (None, None, False, 8, 8))
    return request.param


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("by", ["segmented", "fixed", "triton"])
def test_fed_tokens_are_the_plain_sequence(
    kind: str, by: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches of two pages decode some tokens, are fed others, and decode on; each alone, or three
    at a time, so that two of two passes fill them up. Nothing else decodes what it decoded."""
    if by == "triton":
        pytest.importorskip("triton", reason="triton has no wheel for this platform")
        window, soft_cap, has_sinks, *_ = KINDS[kind]
        monkeypatch.setitem(KINDS, kind, (window, soft_cap, has_sinks, 16, 16))
    monkeypatch.setenv(selection.OVERRIDE, "segmented")
    dtype = torch.float32 if by == "triton" else torch.float64
    near = {"rtol": 1e-4, "atol": 1e-5} if by == "triton" else {"rtol": 1e-10, "atol": 1e-12}
    *qkv, sinks, _ = (x.detach() for x in values(kind, LAYOUT.num_tokens, dtype))
    exact = unshared(kind, [x.double() for x in (*qkv, sinks)], LAYOUT)
    layer = style(kind, sinks)
    recorder = PrefixRecorder(PAGES, slots=14)
    recorder(0, *(x[:, :, : sum(PAGES)] for x in qkv), SCALE, layer)
    monkeypatch.setenv(selection.OVERRIDE, "triton" if by == "triton" else "segmented")
    attention = DecodeAttention(recorder, VISIBLE, OWN + 1, fixed=by != "segmented")

    def decode(places: torch.Tensor) -> None:
        attention.rewind(places.view(2, 2))
        rows = BEHIND + places
        out = attention(0, *(x[:, :, rows] for x in qkv), SCALE, layer)
        torch.testing.assert_close(out.double(), exact[:, :, rows], **near)

    starts, counts = torch.tensor(STARTS), torch.tensor(COUNTS)
    for step in range(2):  # beyond its start a branch writes what feeding has to replace
        decode(torch.full((4,), step))
    attention.rewind(starts.view(2, 2))
    for first in range(0, 4, together):
        some = list(range(first, min(first + together, 4)))
        fed = [COUNTS[n] for n in some] + [0] * (together - len(some))
        rows = some + [some[0]] * (together - len(some))
        width = fed[0] if together == 1 else 6
        feeding = attention.feeding(rows, fed, width)
        at = BEHIND[rows, None] + starts[rows, None] + feeding.offset
        assert int((at - BEHIND[rows, None]).max()) < OWN
        out = feeding(0, *(x[:, :, at.flatten()] for x in qkv), SCALE, layer)
        assert out.shape == (1, 4, together * width, KINDS[kind][4])
        for r, (n, count) in enumerate(zip(rows, fed, strict=True)):
            own = slice(r * width, r * width + count)
            told = exact[:, :, BEHIND[n] + STARTS[n] :][:, :, :count]
            torch.testing.assert_close(out[:, :, own].double(), told, **near)
    decode(starts + counts)
    decode(starts + counts + 1)


def test_a_branch_alone_is_bit_for_bit_the_same_beside_any_others() -> None:
    """Wide heads and a long page, where products are added up by their shapes."""
    generator = torch.Generator().manual_seed(0)
    page, count = 300, 48

    def tokens(number: int) -> list[torch.Tensor]:
        return [torch.randn(1, heads, number, 64, generator=generator) for heads in (9, 3, 3)]

    whole, given = tokens(page), tokens(count)
    found = []
    for branches, which in ((1, 0), (24, 7)):
        recorder = PrefixRecorder((page,), slots=320)
        recorder(0, *whole, SCALE)
        visible = torch.full((1, branches), 257)
        attention = DecodeAttention(recorder, visible, 60)
        attention.rewind(torch.zeros_like(visible))
        for beside in range(branches):
            if beside != which:
                attention.feeding([beside], [5], 5)(0, *tokens(5), SCALE)
        found.append(attention.feeding([which], [count], count)(0, *given, SCALE))
    assert torch.equal(*found)
    assert found[0].isfinite().all()
