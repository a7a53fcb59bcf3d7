"""Weights packed for sampling: thoughts as with plain ones, to the bit, and nothing left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES
from rntp_kernels.tree_attention import TreeAttention, TreeLayout
from test_lockstep import context, engine, place, thoughts_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from rntp.model import ATTENTION, LanguageModel, cast_parameters, load_model
from rntp.rollout.lean import FAMILIES, LeanLayer, Product, lean_trunk
from rntp.rollout.packed import MIN_STEPS, packed_weights, packing_pays

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="the processor has no bfloat16",
)


@pytest.fixture
def model(model_folders: dict[str, Path], request: pytest.FixtureRequest) -> LanguageModel:
    model = load_model(str(model_folders[getattr(request, "param", "llama")]))
    cast_parameters(model.hf, torch.bfloat16)
    return model


class Products(TorchDispatchMode):
    """Counts the products of plain and of packed weights with a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = self.packed = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.plain += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        self.packed += func.overloadpacket is torch.ops.mkldnn._linear_pointwise
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", list(ARCHITECTURES), indirect=True)
def test_thoughts_and_log_probs_are_equal_to_the_bit(model: LanguageModel) -> None:
    contexts = [context(0), context(1, 17)]
    sampler = engine(model, budget=9, answer_tokens=3)
    sampler.sample(contexts, place)  # the lean trunk is compared with the model's own once
    with Products() as counted:
        packed = sampler.sample(contexts, place)
    forwards: list[int] = []
    hook = model.hf.base_model.register_forward_pre_hook(lambda *_: forwards.append(1))
    with Products() as plainly:
        plain = engine(model, budget=9, answer_tokens=3, pack=False).sample(contexts, place)
    hook.remove()
    for own, other in zip(thoughts_of(packed), thoughts_of(plain), strict=True):
        assert torch.equal(own.sampled_ids, other.sampled_ids)
        assert torch.equal(own.drawn_logprobs, other.drawn_logprobs)
    # What is left is the head over the pages, which is no layer's forward.
    assert counted.plain <= 1
    assert plainly.packed == 0
    # In the two layers of a known trunk, three of seven products are part of others.
    known = type(model.hf.base_model) in FAMILIES
    fewer = 3 * 2 * len(forwards) if known else 0
    assert known == (type(model.hf.base_model).__name__ in ("LlamaModel", "Qwen3Model"))
    assert counted.packed == plainly.plain - counted.plain - fewer


def test_weights_that_have_moved_are_packed_again(model: LanguageModel) -> None:
    sampler = engine(model, budget=9)
    before = sampler.sample([context(0)], place)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.mul_(1.2)
    after = sampler.sample([context(0)], place)
    plain = engine(model, budget=9, pack=False).sample([context(0)], place)
    logprobs = [[t.drawn_logprobs for t in thoughts_of(r)] for r in (before, after, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*logprobs[1:], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(*logprobs[:2], strict=True))


@pytest.mark.parametrize(("model", "alone"), [("llama", 1), ("olmo2", 15)], indirect=["model"])
def test_layers_are_as_they_were_even_after_an_error(model: LanguageModel, alone: int) -> None:
    layers = [m for m in model.hf.modules() if isinstance(m, nn.Linear)]

    def patched() -> int:
        return sum("forward" in m.__dict__ for m in layers)

    def fail(*_: object) -> tuple[int, ...]:
        assert patched() == alone  # of a known trunk only the head: the others are in its own
        assert ("rntp_trunk" in model.hf.__dict__) == (alone == 1)
        raise KeyError

    with pytest.raises(KeyError):
        engine(model, budget=9).sample([context(0)], fail)
    assert patched() == 0
    assert "rntp_trunk" not in model.hf.__dict__


def test_what_computes_in_its_own_way_is_left_alone(model: LanguageModel) -> None:
    class Doubling(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    own, hooked = Doubling(4, 4).bfloat16(), nn.Linear(4, 4).bfloat16()
    hooked.forward = mine = lambda x: -x  # type: ignore[method-assign]
    model.hf.more = nn.ModuleList([own, hooked])
    x = torch.ones(1, 4).bfloat16()
    expected = own(x)
    with packed_weights(model.hf):
        assert torch.equal(own(x), expected)
        assert torch.equal(hooked(x), -x)
    assert hooked.forward is mine


def plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    return lambda x: nn.functional.linear(x, weight, bias)


def test_the_lean_trunk_has_the_biases_of_its_layers() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None}
    hf = LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True, mlp_bias=True))
    for parameter in hf.parameters():
        parameter.data.uniform_(-1, 1)
    hf = hf.double()
    hf.set_attn_implementation(ATTENTION)
    lean = lean_trunk(hf, plain)
    assert lean is not None
    ids = torch.arange(20)[None]

    def hidden(run: Callable[..., Any]) -> torch.Tensor:
        attention = TreeAttention(TreeLayout((20,), (-1,), (0,)))
        out = run(input_ids=ids, position_ids=ids, use_cache=False, rntp_attention=attention)
        return out.last_hidden_state

    torch.testing.assert_close(hidden(lean), hidden(hf.base_model))
    with torch.no_grad():
        hf.base_model.layers[1].self_attn.v_proj.bias.add_(1.0)
    assert not torch.allclose(hidden(lean), hidden(hf.base_model))  # it has its own copies


def test_a_lean_trunk_that_differs_is_not_used(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LeanLayer.__call__

    def wrong(self, x, cos, sin, attention):
        return right(self, x, cos, -sin, attention)

    monkeypatch.setattr(LeanLayer, "__call__", wrong)
    with pytest.warns(UserWarning, match="own forward"):
        own = engine(model, budget=9).sample([context(0)], place)
    other = engine(model, budget=9, pack=False).sample([context(0)], place)
    for mine, theirs in zip(thoughts_of(own), thoughts_of(other), strict=True):
        assert torch.equal(mine.drawn_logprobs, theirs.drawn_logprobs)


def test_a_trunk_with_something_added_is_run_as_it_is(model: LanguageModel) -> None:
    assert lean_trunk(model.hf, plain) is not None
    norm = model.hf.base_model.layers[0].input_layernorm
    hook = norm.register_forward_hook(lambda module, args, out: 2 * out)
    assert lean_trunk(model.hf, plain) is None
    hook.remove()
    norm.forward = lambda x: x
    assert lean_trunk(model.hf, plain) is None


def test_where_it_pays(model: LanguageModel) -> None:
    assert packing_pays(model.hf, MIN_STEPS)
    assert not packing_pays(model.hf, MIN_STEPS - 1)
    cast_parameters(model.hf, torch.float32)
    assert not packing_pays(model.hf, 100)  # in float32 the library's own order is the same
