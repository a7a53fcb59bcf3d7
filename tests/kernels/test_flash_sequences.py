"""flash-attn on plain packed sequences: what it is handed, and when it is taken. Without a GPU the
package's function is played by one that does as its documentation says."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from rntp_kernels import TreeLayout
from rntp_kernels.tree_attention import dense_attention, dense_mask, selection
from rntp_kernels.tree_attention.flash import FlashSequences
from torch import Tensor

PLAIN = TreeLayout((7, 1, 30), (-1, -1, -1), (0, 0, 0))
BRANCHED = TreeLayout((7, 4), (-1, 0), (0, 3))


def documented(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """q [N, Hq, D], k and v [N, Hkv, D]; sequence i is rows cu_seqlens[i] to cu_seqlens[i + 1]."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert dropout_p == 0.0
    assert cu_seqlens_q.diff().max() == max_seqlen_q
    assert cu_seqlens_k.diff().max() == max_seqlen_k
    pieces = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        mine = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        out = F.scaled_dot_product_attention(
            *mine, is_causal=causal, scale=softmax_scale, enable_gqa=True
        )
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = documented  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(selection, "has_flash", lambda: True)


@pytest.mark.usefixtures("installed")
def test_output_and_gradients_are_those_of_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, heads, PLAIN.num_tokens, 8, generator=generator, dtype=torch.float64)
        for heads in (6, 2, 2, 6)
    ]
    outcomes = []
    for attend in (
        FlashSequences(PLAIN, torch.device("cpu")),
        lambda q, k, v, scale: dense_attention(q, k, v, dense_mask(PLAIN), scale),
    ):
        q, k, v = (x.clone().requires_grad_() for x in tensors[:3])
        out = attend(q, k, v, 0.3)
        outcomes.append([out, *torch.autograd.grad(out, (q, k, v), tensors[3])])
    for mine, known in zip(*outcomes, strict=True):
        assert mine.shape == known.shape
        torch.testing.assert_close(mine, known)


@pytest.mark.usefixtures("installed")
def test_it_is_taken_for_sequences_in_half_precision_on_cuda_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(selection, "self_check", lambda name, *rest: checked.append(name))
    monkeypatch.setattr(selection, "has_triton", lambda: True)

    def queries(dtype: torch.dtype, cuda: bool = True) -> Tensor:
        return SimpleNamespace(dtype=dtype, is_cuda=cuda, device="cuda", shape=(1, 2, 38, 64))  # type: ignore[return-value]

    half, single = queries(torch.bfloat16), queries(torch.float32)
    assert selection.choose("auto", half, half, plain=True) == "flash"
    assert checked == ["flash"]
    assert selection.choose("auto", half, half, plain=False) == "triton"
    assert selection.choose("auto", single, single, plain=True) != "flash"
    on_cpu = queries(torch.bfloat16, cuda=False)
    assert selection.choose("auto", on_cpu, on_cpu, plain=True) == "segmented"
    for tensor, plain, reason in (
        (half, False, "takes plain sequences"),
        (single, True, "takes bfloat16 and float16 on CUDA"),
        (on_cpu, True, "takes bfloat16 and float16 on CUDA"),
    ):
        with pytest.raises(ValueError, match=reason):
            selection.choose("flash", tensor, tensor, plain=plain)
    monkeypatch.setattr(selection, "has_flash", lambda: False)
    assert selection.choose("auto", half, half, plain=True) == "triton"
    with pytest.raises(ValueError, match="pip install flash-attn"):
        selection.choose("flash", half, half, plain=True)


@pytest.mark.usefixtures("installed")
def test_a_layout_with_branches_is_refused() -> None:
    with pytest.raises(ValueError, match="has branches"):
        FlashSequences(BRANCHED, torch.device("cpu"))
