"""Packed weights: thoughts and gradients as with plain ones, to the bit; nothing stays behind."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES
from test_static_batch import context, engine, place, thoughts_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rntp.model import LanguageModel, cast_parameters, load_model
from rntp.model.head import WEIGHT_FLOAT32
from rntp.model.packed_weights import MIN_STEPS, packed_weights, packing_pays
from rntp.model.reading import LossReads
from rntp.model.sharding import checkpoint_activations
from rntp.objective.forward import build_tree, forward

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
    with Products() as counted:
        packed = engine(model, budget=9, answer_tokens=3).sample(contexts, place)
    with Products() as plainly:
        plain = engine(model, budget=9, answer_tokens=3, pack=False).sample(contexts, place)
    for own, other in zip(thoughts_of(packed), thoughts_of(plain), strict=True):
        assert torch.equal(own.sampled_ids, other.sampled_ids)
        assert torch.equal(own.drawn_logprobs, other.drawn_logprobs)
    # What is left is the head, once for the pages' positions and once a token.
    layers = sum(isinstance(m, nn.Linear) for m in model.hf.modules()) - 1
    forwards = counted.packed // layers
    assert counted.packed == forwards * layers > 0
    assert forwards <= counted.plain <= forwards + len(contexts)
    assert plainly.packed == 0
    assert counted.packed + counted.plain == plainly.plain


@pytest.mark.parametrize("model", list(ARCHITECTURES), indirect=True)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_equal_to_the_bit(model: LanguageModel, recompute: bool) -> None:
    rollouts = engine(model, budget=9).sample([context(0), context(1, 17)], place)
    if recompute:
        checkpoint_activations(model.hf)
    outcomes = []
    for pack in (False, True):
        model.hf.zero_grad()
        with packed_weights(model.hf) if pack else nullcontext(), Products() as counted:
            tree = build_tree(model, rollouts, 3, LossReads(context=True, continuation=False))
            scores = forward(model, tree, temperature=1.0)
            total = scores.thought_logp_M.sum() + scores.context_logp.square().sum()
            total.backward()
        gradients = {name: p.grad.clone() for name, p in model.hf.named_parameters()}
        outcomes.append((total.detach(), scores.think_logp_PGH, gradients))
        layers = sum(isinstance(m, nn.Linear) for m in model.hf.modules()) - 1  # and the head
        # Forward, what does not learn, and once more where activations are forgotten.
        assert counted.packed == (layers * (3 if recompute else 2) if pack else 0)
    (total, think, gradients), (own_total, own_think, own_gradients) = outcomes
    assert torch.equal(total, own_total)
    assert torch.equal(think, own_think)
    assert gradients.keys() == own_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, own_gradients[name]), name


def test_a_layer_with_a_bias_alone_and_frozen_ones() -> None:
    layer, x = nn.Linear(16, 8).bfloat16(), torch.randn(3, 5, 16).bfloat16()
    upstream = torch.randn(3, 5, 8).bfloat16()
    for frozen in ((), ("weight",), ("weight", "bias")):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name not in frozen)
        leaves = [[x.clone().requires_grad_(), *layer.parameters()] for _ in range(2)]
        learning = [[t for t in some if t.requires_grad] for some in leaves]
        plain = torch.autograd.grad(layer(leaves[0][0]), learning[0], upstream)
        with packed_weights(nn.ModuleList([layer])):
            own = torch.autograd.grad(layer(leaves[1][0]), learning[1], upstream)
        for mine, true in zip(own, plain, strict=True):
            torch.testing.assert_close(mine, true)


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


def test_layers_are_as_they_were_even_after_an_error(model: LanguageModel) -> None:
    head = model.hf.get_output_embeddings()
    layers = [m for m in model.hf.modules() if isinstance(m, nn.Linear) and m is not head]

    def patched() -> int:
        return sum("forward" in m.__dict__ for m in layers)

    def fail(*_: object) -> tuple[int, ...]:
        assert patched() == len(layers)
        assert torch.equal(vars(head)[WEIGHT_FLOAT32], model.head.float())
        raise KeyError

    with pytest.raises(KeyError):
        engine(model, budget=9).sample([context(0)], fail)
    assert patched() == 0
    assert WEIGHT_FLOAT32 not in vars(head)


def test_what_computes_in_its_own_way_is_left_alone(model: LanguageModel) -> None:
    class Doubling(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    own, hooked = Doubling(4, 4).bfloat16(), nn.Linear(4, 4).bfloat16()
    hooked.forward = mine = lambda x: -x  # type: ignore[method-assign]
    both, x = nn.ModuleList([own, hooked]), torch.ones(1, 4).bfloat16()
    expected = own(x)
    with packed_weights(both):
        assert torch.equal(own(x), expected)
        assert torch.equal(hooked(x), -x)
    assert hooked.forward is mine


def test_where_it_pays(model: LanguageModel) -> None:
    assert packing_pays(model.hf, MIN_STEPS)
    assert not packing_pays(model.hf, MIN_STEPS - 1)
    cast_parameters(model.hf, torch.float32)
    assert not packing_pays(model.hf, 100)  # in float32 the library's own order is the same


def test_a_model_may_change_its_products_in_place() -> None:
    """OLMo's clipped queries: what a packed layer gives is nobody's view."""
    layer = nn.Linear(8, 6).bfloat16()
    x = torch.randn(2, 5, 8).bfloat16().requires_grad_()
    outcomes = []
    for pack in (False, True):
        with packed_weights(layer) if pack else nullcontext():
            out = layer(x)
            out.clamp_(-0.3, 0.3)
        grads = torch.autograd.grad(out.float().square().sum(), (x, layer.weight, layer.bias))
        outcomes.append([out, *grads])
    assert float(outcomes[0][0].abs().max()) == pytest.approx(0.3, abs=1e-2)
    for plain, packed in zip(*outcomes, strict=True):
        torch.testing.assert_close(packed, plain, rtol=0, atol=0)
