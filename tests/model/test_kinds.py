"""Every kind of model in float64: a tree against the plain sequences it stands for, by the class's
own eager attention; logits, log-probs, entropies and the gradients of all parameters."""

import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "models"))

from tiny_models import TOKENS, save, tiny_model
from transformers import AutoModelForCausalLM

from rntp.model import Head, LanguageModel, load_model
from rntp.model.sharding import checkpoint_activations
from rntp.model.thought_tree import TokenTree
from rntp.objective.forward import build_tree, forward
from rntp.objective.rewards_and_advantages import sampler_logp
from rntp.rollout.engine import InProcessEngine
from rntp.types import Context

WINDOW = {"sliding_window": 12, "use_sliding_window": True, "max_window_layers": 0}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
# label: (model type, fields, head)
KINDS = {
    "latent attention": ("deepseek_v3", {}, Head()),
    "latent attention, scaled": ("minicpm3", {}, None),
    "soft caps": ("gemma2", {"sliding_window": 12}, Head(soft_cap=30.0)),
    "sinks": ("gpt_oss", MIXED, Head()),
    "windows": ("mistral", WINDOW, Head()),
    "windows in the masks alone": ("phimoe", WINDOW, Head()),
    "windows in some layers": ("qwen2_moe", {**MIXED, "max_window_layers": 2}, Head()),
    "scaled logits": ("granite", {"logits_scaling": 8.0}, Head(scale=0.125)),
    "multiplied logits": ("cohere", {"logit_scale": 0.25}, Head(scale=0.25)),
    "a head with a bias": ("phi", {}, Head()),
    "capped logits": ("gemma3_text", {"final_logit_softcapping": 3.0}, Head(soft_cap=3.0)),
    "a padded vocabulary": ("llama", {"vocab_size": 384}, Head()),
    "experts": ("mixtral", {}, Head()),
    "widths by layer": ("gemma4_text", {"sliding_window": 12}, None),
}


class InFloat64(TorchFunctionMode):
    """Norms, rotary embeddings and softmaxes of transformers work in float32 whatever the model's
    type; to compare to 1e-12, everything has to be float64 throughout."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def widened(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            return args[0].double()
        kwargs = {key: widened(value) for key, value in (kwargs or {}).items()}
        return function(*map(widened, args), **kwargs)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(kind: str, tmp_path: Path) -> Path:
    name, fields, _ = KINDS[kind]
    return save(tiny_model(name, **fields), tmp_path)


def plain_model(folder: Path, dtype: torch.dtype):
    plain = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()
    if dtype == torch.float64 and plain._can_set_experts_implementation():
        plain.set_experts_implementation("eager")
    return plain


def forest(tokens: int) -> TokenTree:
    """A page longer than every window, branches up to its end and beyond, and a page beside it."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(1, tokens, (count,), generator=generator)

    return TokenTree.build(
        [
            (ids(26), -1, 0),
            (ids(5), 0, 9),
            (ids(4), 1, 5),
            (ids(6), 0, 26),
            (ids(3), 3, 4),
            (ids(7), -1, 0),
        ]
    )


def in_tree(model: LanguageModel, tree: TokenTree, targets: torch.Tensor) -> list[torch.Tensor]:
    hidden = tree.hidden(model)
    logp, entropy, top1 = model.logprob(hidden, targets, 0.7)
    return [model.logits(hidden), logp, entropy, top1]


def alone(plain, tree: TokenTree, targets: torch.Tensor, known: int) -> list[torch.Tensor]:
    """The same by plain sequences and plain softmax over the tokenizer's ids."""
    layout = tree.layout
    logits = torch.cat(
        [
            plain(tree.token_ids[layout.unshared(s)][None], use_cache=False).logits[0, -n:, :known]
            for s, n in enumerate(layout.lengths)
        ]
    )
    logp = torch.log_softmax(logits / 0.7, -1)
    own = logp.gather(1, targets[:, None])[:, 0]
    return [logits, own, -(logp.exp() * logp).sum(-1), logp.argmax(-1)]


def test_a_tree_is_its_plain_sequences_to_the_last_digits(kind: str, folder: Path) -> None:
    """Value and gradient of a loss of log-probs and entropies, and of all parameters."""
    with InFloat64():
        model = load_model(str(folder), dtype=torch.float64)
        # The plain one has to know the markers' rows.
        plain = plain_model(folder, torch.float64)
        known = len(model.tokenizer)
        assert model.vocabulary == known < TOKENS + 2
        plain.load_state_dict(model.hf.state_dict())
        tree = forest(known)
        targets = torch.randint(known, tree.token_ids.shape)
        own = in_tree(model, tree, targets)
        exact = alone(plain, tree, targets, known)
        for mine, true in zip(own, exact, strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-11)
        weights = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
        for outcome in (own, exact):
            (outcome[1] * weights + 0.3 * outcome[2]).sum().backward()
    theirs = dict(plain.named_parameters())
    seen = 0
    for name, parameter in model.hf.named_parameters():
        true = theirs[name].grad
        if true is None or float(true.abs().max()) < 1e-9:  # keys' biases change nothing
            continue
        assert parameter.grad is not None, name
        gap = (parameter.grad - true).norm() / true.norm()
        assert gap < 1e-11, (name, float(gap))
        seen += 1
    assert seen >= 10
    if kind == "sinks":
        assert any("sinks" in n and p.grad.abs().min() > 0 for n, p in theirs.items())
    if kind == "a head with a bias":
        assert float(model.bias.grad.abs().max()) > 0


def test_forgotten_activations_give_the_same_gradient(kind: str, folder: Path) -> None:
    found = []
    for forget in (False, True):
        model = load_model(str(folder))
        if forget:
            checkpoint_activations(model.hf)
        tree = forest(TOKENS - 20)
        logp, entropy, _ = model.logprob(tree.hidden(model), tree.token_ids)
        (logp + 0.3 * entropy).sum().backward()
        found.append({n: p.grad for n, p in model.hf.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, wanted in found[0].items():
        torch.testing.assert_close(found[1][name], wanted, rtol=1e-4, atol=1e-6)


def test_the_head_is_what_the_class_says(kind: str, folder: Path) -> None:
    _, _, wanted = KINDS[kind]
    model = load_model(str(folder))
    if wanted is not None:
        assert model.shape.scale == pytest.approx(wanted.scale)
        assert model.shape.soft_cap == wanted.soft_cap
    assert model.shape.vocabulary == len(model.tokenizer)
    assert (model.bias is not None) == (kind == "a head with a bias")
    hidden = torch.randn(5, model.head.shape[1])
    logits = model.logits(hidden)
    some = torch.tensor([3, 200, 17])
    torch.testing.assert_close(model.logits(hidden, of=some), logits[:, some])
    torch.testing.assert_close(
        model.collision(hidden), logits.softmax(-1).square().sum(-1), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("fixed", [False, True])
def test_what_is_drawn_is_what_is_scored_and_a_token(kind: str, folder: Path, fixed: bool) -> None:
    model = load_model(str(folder))
    contexts = [
        Context(n, f"page {n}", torch.arange(1, 31 - 3 * n) * 7 % 200 + 1) for n in range(2)
    ]
    engine = InProcessEngine(
        model,
        thoughts=4,
        budget=7,
        answer_tokens=3,
        temperature=1.3,
        seed=0,
        slots=30,
        fixed_shapes=fixed,
    )
    rollouts = engine.sample(contexts, lambda context, _: (4, len(context) - 5))
    drawn = torch.cat([t.sampled_ids for r in rollouts for g in r.thoughts for t in g])
    assert int(drawn.max()) < len(model.tokenizer)
    with torch.no_grad():
        found = forward(model, build_tree(model, rollouts, 4), temperature=1.3)
    gap = (found.thought_logp_M - sampler_logp(rollouts)).abs().max()
    assert gap < 1e-3
